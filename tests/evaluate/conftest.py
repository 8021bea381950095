"""Images of the bundled generator: no download, and a classifier can distinguish their classes."""

from pathlib import Path

import pytest

NUM_IMAGES = 256  # images of a split


@pytest.fixture(scope="session")
def generated_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Fashion-MNIST's files, 256 images a split, for `data_root`."""
    import torch

    import tok1d

    root = tmp_path_factory.mktemp("generated")
    generator, tokenizer = tok1d.load_pair("fashion-mnist-epsilon-llamagen", device="cpu")
    labels = torch.arange(NUM_IMAGES) % 10
    for seed, prefix in enumerate(("train", "t10k")):
        with torch.no_grad():
            tokens = generator.sample(
                labels, num=NUM_IMAGES, guidance=1.5, steps=3, generator=torch.Generator().manual_seed(seed)
            )
            x = tokenizer.decode(tokens, steps=2, generator=torch.Generator().manual_seed(seed))
        pixels = (x[:, 0].clamp(0, 1) * 255).round().to(torch.uint8)
        for kind, array in (("images-idx3-ubyte", pixels), ("labels-idx1-ubyte", labels.to(torch.uint8))):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (root / f"{prefix}-{kind}").write_bytes(head + array.numpy().tobytes())
    return root

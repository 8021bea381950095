"""USiT: its size, its skips, its tokens of time and class."""

import pytest
import torch
from torch import nn

from tok1d.config.fields import build_config
from tok1d.errors import ConfigError
from tok1d.generators.usit import USiT, USiTConfig


def small(**options: object) -> USiT:
    torch.manual_seed(0)
    sizes = {"num_tokens": 4, "token_dim": 3, "num_classes": 2, "dim": 8, "depth": 5, "heads": 2}
    model = USiT(USiTConfig(**{**sizes, **options}))  # type: ignore[arg-type]
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def test_the_2b_size_is_near_the_release() -> None:
    # DC-AE's USiT-2B states 1,580.4 M parameters; its 256 latents of 32 channels give the nearest count.
    for length, millions in ((128, 1580.13), (256, 1580.40)):
        with torch.device("meta"):
            model = USiT(build_config(USiTConfig, {"size": "2B", "num_tokens": length}))
        assert abs(sum(p.numel() for p in model.parameters()) / 1e6 - millions) < 0.005


def test_every_late_block_reads_the_output_of_its_mirror() -> None:
    model = small().double()
    outputs, joined = [], []
    for block in model.net.blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    for skip in model.net.skips:
        skip.register_forward_hook(lambda module, inputs, output: joined.append(inputs[0]))
    model.net(torch.randn(2, 4, 3).double(), torch.tensor([0.5]).double(), torch.tensor([0, 1]))
    for i, (before, mirror) in enumerate(((2, 1), (3, 0))):
        assert torch.equal(joined[i], torch.cat([outputs[before], outputs[mirror]], dim=-1))


@pytest.mark.parametrize("guidance_free", [False, True])
def test_time_class_and_beta_are_tokens_that_change_the_output(guidance_free: bool) -> None:
    model = small(guidance_free=guidance_free)
    x, t, labels = torch.randn(2, 4, 3), torch.tensor([0.5, 0.5]), torch.tensor([0, 1])
    out = model.net(x, t, labels)
    assert out.shape == x.shape and model.net.positions.shape[1] == 4 + 2 + guidance_free
    assert not torch.allclose(out, model.net(x, t + 0.2, labels))
    assert not torch.allclose(out, model.net(x, t, 1 - labels))
    if guidance_free:
        assert torch.equal(out, model.net(x, t, labels, torch.ones(2)))
        assert not torch.allclose(out, model.net(x, t, labels, torch.full((2,), 0.5)))


def test_an_even_depth_has_no_middle() -> None:
    with pytest.raises(ConfigError, match="odd number of blocks, got 4"):
        USiTConfig(depth=4).check()

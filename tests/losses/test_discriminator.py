"""Discriminators: spectral norms, the frozen trunk and its heads, patch networks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from tok1d.errors import ConfigError, WeightsError
from tok1d.losses.discriminator import (
    BlurPatchConfig,
    BlurPatchDiscriminator,
    DinoConfig,
    DinoDiscriminator,
    DinoHead,
    DinoTrunk,
    PatchConfig,
    PatchDiscriminator,
    SpectralConv1d,
    _Blur,
)
from tok1d.zoo.adapters.discriminator import (
    BLUR_PATCH,
    HEADS,
    TRUNK,
    blur_patch_from_published,
    heads_from_published,
    trunk_from_published,
)
from tok1d.zoo.pretrained.discriminator import build_discriminator, load_trunk


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(*shape: int) -> Tensor:
    return 2 * torch.rand(*shape, generator=seeded()) - 1


def trunk() -> DinoTrunk:
    torch.manual_seed(0)
    found = DinoTrunk(8, 4, 2, patch=4, side=4)
    for weight in found.parameters():
        weight.data.add_(0.2 * torch.randn_like(weight))
    return found


def dino() -> DinoDiscriminator:
    return DinoDiscriminator(trunk(), image_size=16, kernel_size=3)


def test_spectral_norm_divides_by_the_largest_singular_value() -> None:
    torch.manual_seed(0)
    conv = SpectralConv1d(6, 5)
    for _ in range(200):
        conv.iterate()
    unit = torch.eye(6)[..., None]
    matrix = (conv.eval()(unit) - conv.bias[:, None])[..., 0].T
    torch.testing.assert_close(matrix, conv.weight[..., 0] / torch.linalg.matrix_norm(conv.weight[..., 0], 2))


def test_only_training_passes_move_the_singular_vectors_and_two_can_be_differentiated() -> None:
    torch.manual_seed(0)
    conv = SpectralConv1d(6, 5, 3)
    x, before = torch.randn(2, 6, 7), conv.u.clone()
    conv.eval()(x)
    assert torch.equal(conv.u, before)
    conv.train()
    first = conv(x)
    assert not torch.equal(conv.u, before)
    (first.sum() + conv(x).sum() + conv.eval()(x).sum()).backward()
    assert conv.weight.grad is not None and conv.weight.grad.any()


def test_heads_survive_a_round_trip() -> None:
    torch.manual_seed(0)
    head, x = DinoHead(6, kernel_size=3).eval(), images(2, 6, 9)
    torch.testing.assert_close(head(x.roll(2, -1)), head(x).roll(2, -1))


def test_readouts_are_states_plus_the_class_tokens() -> None:
    network, x = trunk(), images(2, 3, 16, 16)
    found = network(x, [0, 2, 4])
    states = network.vit.embed(network.patch_embed(x), (4, 4))
    for readout, blocks in zip(found, (network.vit.blocks[:0], network.vit.blocks[:2], network.vit.blocks[2:])):
        for block in blocks:
            states = block(states)
        torch.testing.assert_close(readout, (states[:, 1:] + states[:, :1]).transpose(1, 2))
    assert len(found) == 3


def test_the_trunk_is_frozen_and_not_a_submodule() -> None:
    network = dino()
    assert network.depths == [0, 1, 2, 3, 4]
    assert DinoDiscriminator(DinoTrunk(8, 12, 2, patch=8, side=2)).depths == [0, 3, 6, 9, 12]
    assert {name.split(".")[0] for name in network.state_dict()} == {"heads"}
    assert not any(p.requires_grad for p in network.trunk.parameters())
    assert {id(p) for p in network.parameters()}.isdisjoint(id(p) for p in network.trunk.parameters())
    assert network.train().training and not network.trunk.training
    x = images(2, 3, 16, 16).requires_grad_()
    logits = network(x)
    assert logits.shape == (2, 5 * 16)
    logits.sum().backward()
    assert x.grad is not None and x.grad.any() and all(p.grad is None for p in network.trunk.parameters())
    assert all(p.grad is not None for p in network.parameters())


def test_what_the_trunk_receives() -> None:
    network = dino()
    grey = images(2, 1, 16, 16)
    assert torch.equal(network.prepare(grey), network.prepare(grey.expand(2, 3, 16, 16)))
    standard = ((grey + 1) / 2 - network.mean) / network.std
    assert torch.equal(network.prepare(grey), standard)
    big = images(1, 3, 32, 32)
    down = network.eval().prepare(big)
    torch.testing.assert_close(down, F.avg_pool2d(((big + 1) / 2 - network.mean) / network.std, 2))
    network.train()
    inputs = [network.prepare(big, seeded(seed)) for seed in range(12)]
    crops = [x for x in inputs if not torch.equal(x, down)]
    assert 2 <= len(crops) <= 10, "about half of the passes see a crop"
    windows = F.unfold(((big + 1) / 2 - network.mean) / network.std, 16)[0].T.reshape(-1, 3, 16, 16)
    assert all((windows == crop).flatten(1).all(1).any() for crop in crops)
    assert torch.equal(inputs[3], network.prepare(big, seeded(3)))
    small = network.prepare(images(1, 3, 8, 8), seeded())
    assert small.shape == (1, 3, 16, 16), "small images are enlarged, never cropped"


def published(network: DinoTrunk) -> dict[str, Tensor]:
    return {TRUNK.published(name) or "?": value for name, value in network.state_dict().items()}


def test_a_trunk_from_a_file(tmp_path: Path) -> None:
    network, path = DinoTrunk(64, 2, 1, patch=4, side=4), tmp_path / "vit.safetensors"
    state = published(network)
    assert {"blocks.1.attn.qkv.weight", "pos_embed", "cls_token", "norm.bias"} < state.keys()
    save_file({**state, "head.weight": torch.zeros(2, 64)}, path)
    torch.manual_seed(3)
    expected_random = torch.rand(2)
    torch.manual_seed(3)
    found = load_trunk(DinoConfig(weights=str(path), image_size=16))
    assert torch.equal(expected_random, torch.rand(2)), "the global generator is not touched"
    x = images(1, 3, 16, 16)
    torch.testing.assert_close(found(x, [2]), network(x, [2]))
    with pytest.raises(ConfigError, match=r"expected a multiple of 4, the patches of .*, got 18"):
        load_trunk(DinoConfig(weights=str(path), image_size=18))
    with pytest.raises(WeightsError, match="no such file"):
        load_trunk(DinoConfig(weights=str(tmp_path / "none.pth")))
    with pytest.raises(WeightsError, match=r"plain vision transformer.*w12"):
        trunk_from_published({**state, "blocks.0.mlp.w12.weight": torch.zeros(1, 4, 64)}, "file")
    with pytest.raises(WeightsError, match=r"blocks\.0\.norm1\.bias"):
        trunk_from_published({name: v for name, v in state.items() if name != "blocks.0.norm1.bias"}, "file")
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="plain vision transformer"):
        load_trunk(DinoConfig(weights=str(path)))


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
def test_a_trunk_of_dinov2_computes_as_timm_does_with_its_own_gelu(name: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="pip install 'tok1d[teachers]' compares with it")
    torch.manual_seed(0)
    network: Any = timm.create_model(name, img_size=28, embed_dim=64, depth=3, num_heads=1, num_classes=0).eval()
    for weight in network.parameters():
        weight.data.add_(0.2 * torch.randn_like(weight))
    state, x = network.state_dict(), images(2, 3, 28, 28)
    own = dict(state)  # DINOv2's layout: a token of its training, and with registers the class token has a position
    own["mask_token"] = torch.zeros(1, 64)
    if "reg_token" in own:
        own["register_tokens"], first = own.pop("reg_token"), torch.randn(1, 1, 64)
        own |= {"cls_token": state["cls_token"] - first, "pos_embed": torch.cat([first, state["pos_embed"]], dim=1)}
    states, prefix = [], network.num_prefix_tokens
    for block in network.blocks:
        block.register_forward_hook(lambda module, inputs, output: states.append(output))
    network(x)
    for i, layout in enumerate((state, own)):
        path = str(tmp_path / f"{i}.safetensors")
        save_file({key: value.contiguous() for key, value in layout.items()}, path)
        config = DinoConfig(backbone=f"{name}.lvd142m", weights=path, image_size=28)
        for depth, found in zip((1, 2, 3), load_trunk(config)(x, [1, 2, 3])):
            expected = states[depth - 1][:, prefix:] + states[depth - 1][:, :1]
            torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-4, rtol=1e-4)
        other = load_trunk(replace(config, gelu="tanh"))(x, [3])[0]
        assert not torch.allclose(other, expected.transpose(1, 2), atol=1e-4, rtol=1e-4)


def test_the_gelu_is_the_backbone_s_own_except_for_the_released_discriminator() -> None:
    assert DinoConfig().tanh and DinoConfig(backbone="vit_small_patch8_224.dino").tanh
    assert not DinoConfig(gelu="exact").tanh
    assert not DinoConfig(backbone="vit_small_patch14_dinov2.lvd142m").tanh
    assert DinoConfig(backbone="vit_small_patch14_dinov2.lvd142m", gelu="tanh").tanh


def test_published_names_of_the_heads() -> None:
    state = dino().state_dict()
    there = {HEADS.published(name) or "?": value for name, value in state.items()}
    assert {"heads.4.1.fn.0.weight_orig", "heads.0.0.1.running_var", "heads.2.2.weight_u"} < there.keys()
    assert "?" not in there and heads_from_published(there).keys() == state.keys()
    with pytest.raises(WeightsError, match="discriminator heads: unexpected weights"):
        heads_from_published({"heads.0.3.weight": torch.zeros(1)})


def test_patch_discriminator_is_pix2pix_s() -> None:
    # pix2pix's own listing: 2.769 M parameters for pairs of colour images, a field of 70 pixels.
    network = PatchDiscriminator(6)
    assert sum(p.numel() for p in network.parameters()) == 2_768_705
    small = PatchDiscriminator(1, width=4, layers=3).eval()
    x = images(1, 1, 128, 128)
    changed = x.clone()
    changed[..., 64, 64] += 1
    logits = small(x)
    rows = (small(changed) != logits)[0, 0].any(1).nonzero().flatten()
    assert logits.shape[-1] == 14 and 70 // 8 <= len(rows) <= 70 // 8 + 1, "a logit every 8 pixels"


def test_blur_keeps_flat_parts_and_halves() -> None:
    flat = _Blur()(torch.full((1, 2, 8, 8), 3.0))
    assert flat.shape == (1, 2, 4, 4)
    torch.testing.assert_close(flat[..., 1:-1, 1:-1], torch.full((1, 2, 2, 2), 3.0))
    x = images(1, 1, 8, 8)
    row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    by_hand = (x[0, 0, 1:5, 3:7] * row[:, None] * row).sum()
    torch.testing.assert_close(_Blur()(x)[0, 0, 1, 2], by_hand)


def test_blur_patch_discriminator_gives_16_by_16_logits_of_single_images() -> None:
    torch.manual_seed(0)
    network, x = BlurPatchDiscriminator(1, width=32, stages=1), images(3, 1, 32, 32)
    logits = network(x)
    assert logits.shape == (3, 1, 16, 16)
    torch.testing.assert_close(network(x[:1]), logits[:1], msg="no statistics of the batch")


def test_building() -> None:
    assert isinstance(build_discriminator(PatchConfig(width=4), 1), PatchDiscriminator)
    assert isinstance(build_discriminator(BlurPatchConfig(width=32, stages=1), 1), BlurPatchDiscriminator)
    network = build_discriminator(DinoConfig(weights="random"), 3)
    assert isinstance(network, DinoDiscriminator) and network.depths == [0, 3, 6, 9, 12]
    assert sum(p.numel() for p in network.trunk.parameters()) == 21_665_664, "timm's vit_small_patch16_224.dino"
    for backbone, count in (
        ("vit_small_patch8_224.dino", 21_670_272),
        ("vit_small_patch14_dinov2.lvd142m", 22_056_192),
        ("vit_small_patch14_reg4_dinov2.lvd142m", 22_057_344),
    ):
        trunk = load_trunk(DinoConfig(backbone=backbone, weights="random"))
        assert sum(p.numel() for p in trunk.parameters()) == count, "timm's count"
    with pytest.raises(ConfigError, match=r"^backbone: weights=random knows the sizes of .* alone, got vit_base"):
        load_trunk(DinoConfig(backbone="vit_base_patch14_dinov2.lvd142m", weights="random"))


def test_a_blurring_patch_network_from_published_weights() -> None:
    torch.manual_seed(0)
    network, x = BlurPatchDiscriminator(1, 32, 2), images(2, 1, 32, 32)
    state = {BLUR_PATCH.published(name) or "?": value for name, value in network.state_dict().items()}
    state |= {f"blocks.{i}.1.kernel": torch.zeros(1, 1, 4, 4) for i in range(2)}  # stored, and computed here
    assert torch.equal(blur_patch_from_published(state, "file")(x), network(x))
    for change, message in (
        ({"blocks.0.3.bias": torch.zeros(1)}, r"file: expected a patch discriminator .*, got 1 \(blocks.0.3.bias\)"),
        ({"block_in.0.weight": None}, "without its first layer or its stages"),
        ({"to_logits.0.bias": None}, r"weights missing: 1 \(to_logits.0.bias\)"),
    ):
        wrong = {name: value for name, value in {**state, **change}.items() if value is not None}
        with pytest.raises(WeightsError, match=message) as error:
            blur_patch_from_published(wrong, "file")
        assert "\n" not in str(error.value)

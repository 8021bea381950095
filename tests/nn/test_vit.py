"""The ViT body: which tokens are rotated, the learned position table, other grids."""

import pytest
import torch
from torch import Tensor, nn

from tok1d.nn.attention import Attention, full
from tok1d.nn.block import Block, LayerScale, Mlp
from tok1d.nn.position import grid_coordinates, mixed_angles, rotate
from tok1d.nn.vit import Rotary, ViT, ViTShape


def vit(rotation: Rotary = "mixed", **options: object) -> ViT:
    torch.manual_seed(0)
    model = ViT(ViTShape(16, 2, 2, side=3, rotation=rotation, **options)).double().eval()  # type: ignore[arg-type]
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def patches() -> Tensor:
    return torch.randn(2, 9, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_sequence_is_class_registers_patches_extra(patches: Tensor) -> None:
    model, extra = vit(registers=2), torch.randn(2, 4, 16, dtype=torch.float64)
    x = model.embed(patches, (3, 3), extra)
    assert x.shape == (2, 3 + 9 + 4, 16)
    torch.testing.assert_close(x[:, :1], model.cls_token.expand(2, -1, -1))
    torch.testing.assert_close(x[:, 1:3], model.registers.expand(2, -1, -1))
    torch.testing.assert_close(x[:, 3:12], patches + model.positions)
    torch.testing.assert_close(x[:, 12:], extra)


def test_without_registers_the_class_token_has_a_row_of_the_table(patches: Tensor) -> None:
    model = vit()
    assert model.positions.shape == (1, 10, 16)
    torch.testing.assert_close(model.embed(patches, (3, 3))[0, 0], (model.cls_token + model.positions[:, :1])[0, 0])
    larger = model.table(4, 6)
    assert larger.shape == (1, 25, 16)
    assert torch.equal(larger[:, :1], model.positions[:, :1])


@pytest.mark.parametrize("rotation", ["mixed", "axial"])
def test_only_patches_are_rotated(rotation: Rotary) -> None:
    model = vit(rotation)
    q, k, v = torch.randn(3, 2, 2, 1 + 9 + 4, 8, dtype=torch.float64)
    angles = model.angles(3, 3)[0]

    def turned(x: Tensor) -> Tensor:
        patches = rotate(x[:, :, 1:10], angles.cos(), angles.sin())
        assert not torch.allclose(patches[:, :, 1:], x[:, :, 2:10])
        return torch.cat([x[:, :, :1], patches, x[:, :, 10:]], dim=2)

    torch.testing.assert_close(model.attends((3, 3), 4)[0](q, k, v), full(turned(q), turned(k), v))


@pytest.mark.parametrize("rotation", ["mixed", "axial"])
def test_scores_depend_on_the_offset_alone(rotation: Rotary) -> None:
    model = vit(rotation)
    angles = model.angles(4, 4)[-1].double()
    q, k = torch.randn(2, 2, 1, 8, dtype=torch.float64).unbind(0)
    turned_q, turned_k = (rotate(x.expand(2, 16, 8), angles.cos(), angles.sin()) for x in (q, k))
    scores = (turned_q @ turned_k.transpose(1, 2)).unflatten(1, (4, 4)).unflatten(3, (4, 4))
    torch.testing.assert_close(scores[:, 0, 0, 1, 2], scores[:, 2, 1, 3, 3], atol=1e-5, rtol=0)
    assert not torch.allclose(scores[:, 0, 0, 1, 2], scores[:, 0, 0, 2, 1])


def test_learned_frequencies_differ_by_block_and_head() -> None:
    model = ViT(ViTShape(16, 2, 2, side=3, rotation="mixed"))
    columns, rows = grid_coordinates(3, 3)
    angles = mixed_angles(model.freqs, 2, columns, rows)
    assert angles.shape == (2, 2, 9, 4)
    speeds = angles[:, :, 1, 0].square() + angles[:, :, 3, 0].square()  # one step right, one step down
    torch.testing.assert_close(speeds, torch.ones(2, 2))  # the first frequency is 1, in a direction of its own
    assert angles[:, :, 1, 0].unique().numel() == 4


def test_forward_is_the_blocks_and_the_norm(patches: Tensor) -> None:
    model, extra = vit("none"), torch.randn(2, 4, 16, dtype=torch.float64)
    x = model.embed(patches, (3, 3), extra)
    for block in model.blocks:
        x = block(x)
    states, tokens = model(patches, (3, 3), extra)
    torch.testing.assert_close(torch.cat([states, tokens], dim=1), model.norm(x)[:, 1:])
    assert model(patches, (3, 3))[1].shape == (2, 0, 16)


@pytest.mark.parametrize("rotation", ["mixed", "axial", "none"])
def test_rotation_alone_distinguishes_equal_patches(rotation: Rotary) -> None:
    same, extra = torch.ones(1, 9, 16, dtype=torch.float64), torch.randn(1, 4, 16, dtype=torch.float64)
    states = vit(rotation, absolute=False)(same, (3, 3), extra)[0]
    assert torch.allclose(states[:, 1], states[:, 5]) == (rotation == "none")


def test_layer_scale_zero_is_the_identity() -> None:
    torch.manual_seed(0)
    norms = (nn.LayerNorm(8), nn.LayerNorm(8))
    block = Block(Attention(8, 2), Mlp(8, 16), norms, layer_scale=0.0)
    x = torch.randn(1, 3, 8)
    assert torch.equal(block(x), x)
    assert isinstance(block.ls1, LayerScale) and "ls1.gamma" in block.state_dict()
    assert not any("ls" in name for name in Block(Attention(8, 2), Mlp(8, 16), norms).state_dict())

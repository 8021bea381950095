"""The diffusion decoder: conditions without order, its initial zero, its layout and the published sizes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tok1d.config.fields import build_config
from tok1d.nn.embed import unpatchify
from tok1d.nn.position import sincos_2d
from tok1d.tokenizers.token_dit import DecoderConfig, TokenDiT


def decoder(*, moved: bool = True, align_depth: int = 0, out_channels: int = 2, **options: Any) -> TokenDiT:
    torch.manual_seed(0)
    sizes = {"patch": 2, "dim": 12, "depth": 2, "heads": 2, "align_hidden": 8, "align_dim": 6}
    config = build_config(DecoderConfig, {**sizes, "align_depth": align_depth, **options})
    model = TokenDiT(config, channels=1, size=6, num_tokens=4, token_dim=3, out_channels=out_channels).double()
    if moved:  # away from the zeros of adaLN-Zero
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64, generator=source)
    tokens = torch.randn(2, 4, 3, dtype=torch.float64, generator=source)
    return x, torch.tensor([3.0, 700.0]), tokens


CONDITIONING = pytest.mark.parametrize("how", ["joint", "cross"])


@CONDITIONING
def test_starts_as_zero(inputs: tuple[Tensor, Tensor, Tensor], how: str) -> None:
    out = decoder(moved=False, conditioning=how)(*inputs)
    assert out.shape == (2, 2, 6, 6) and not out.any()


@CONDITIONING
def test_output_depends_on_every_input(inputs: tuple[Tensor, Tensor, Tensor], how: str) -> None:
    model = decoder(conditioning=how)
    leaves = [inputs[0].clone().requires_grad_(), inputs[2].clone().requires_grad_()]
    weight = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    (model(leaves[0], inputs[1], leaves[1]) * weight).sum().backward()
    for leaf in leaves:
        assert leaf.grad is not None and (leaf.grad.abs() > 0).all()
    assert not torch.allclose(model(*inputs), model(inputs[0], inputs[1].flip(0), inputs[2]))


@CONDITIONING
def test_the_order_of_condition_tokens_does_not_matter(inputs: tuple[Tensor, Tensor, Tensor], how: str) -> None:
    model, (x, t, tokens) = decoder(conditioning=how), inputs
    torch.testing.assert_close(model(x, t, tokens[:, [2, 0, 3, 1]]), model(x, t, tokens))
    kept = model.fill(tokens, torch.tensor([[True, True, False, False]]).expand(2, -1))
    swapped = kept[:, [1, 0, 2, 3]]
    torch.testing.assert_close(model(x, t, swapped), model(x, t, kept))


def test_null_tokens_differ_by_their_position(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    model, (x, t, tokens) = decoder(), inputs
    first = model.fill(tokens, torch.tensor([[True, False, False, False]]).expand(2, -1))
    elsewhere = model.fill(tokens[:, [1, 0, 2, 3]], torch.tensor([[False, True, False, False]]).expand(2, -1))
    assert not torch.allclose(model(x, t, first), model(x, t, elsewhere))


def test_one_shared_null_token_has_no_position(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    model, (x, t, tokens) = decoder(null_token="shared"), inputs
    assert model.null_tokens.shape == (1, 1, 3) and model.nulls(2).shape == (2, 4, 3)
    first = model.fill(tokens, torch.tensor([[True, False, False, False]]).expand(2, -1))
    assert torch.equal(first[:, 1:], model.null_tokens.expand(2, 3, -1)) and torch.equal(first[:, 0], tokens[:, 0])
    elsewhere = model.fill(tokens[:, [1, 0, 2, 3]], torch.tensor([[False, True, False, False]]).expand(2, -1))
    torch.testing.assert_close(model(x, t, first), model(x, t, elsewhere))
    model(x, t, model.fill(tokens, torch.zeros(2, 4, dtype=torch.bool))).sum().backward()
    assert model.null_tokens.grad is not None and model.null_tokens.grad.all()


def test_only_cross_attention_ignores_how_often_all_tokens_occur(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    # Its softmax is over the tokens alone, so two copies of each share the weight; patches are not among its keys.
    x, t, tokens = inputs
    for how in ("joint", "cross"):
        model = decoder(conditioning=how)
        once, twice = model(x, t, tokens), model(x, t, tokens.repeat(1, 2, 1))
        assert torch.allclose(once, twice, atol=1e-9) == (how == "cross")


def test_cross_attention_without_output_is_a_decoder_without_tokens(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    x, t, tokens = inputs
    cross, plain = decoder(conditioning="cross"), decoder()
    for block in cross.blocks:
        block.zero_init()  # type: ignore[operator]
    renamed = {name.replace(".block.", "."): value for name, value in cross.state_dict().items()}
    plain.load_state_dict({name: renamed[name] for name in plain.state_dict()})
    torch.testing.assert_close(cross(x, t, tokens), plain(x, t, tokens[:, :0]))


def test_fill_by_hand() -> None:
    model = decoder()
    tokens = torch.arange(24.0, dtype=torch.float64).view(2, 4, 3)
    mask = torch.tensor([[True, False, True, False], [False] * 4])
    filled = model.fill(tokens, mask)
    for row in range(2):
        for position in range(4):
            expected = tokens[row, position] if mask[row, position] else model.null_tokens[0, position]
            assert torch.equal(filled[row, position], expected)
    assert model.fill(tokens, None) is tokens


def test_one_time_serves_the_batch(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    model, (x, _, tokens) = decoder(), inputs
    torch.testing.assert_close(model(x, torch.tensor([5.0]), tokens), model(x, torch.tensor([5.0, 5.0]), tokens))


def test_rows_of_a_batch_are_independent(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    model, (x, t, tokens) = decoder(), inputs
    torch.testing.assert_close(model(x, t, tokens)[1:], model(x[1:], t[1:], tokens[1:]))


def test_forward_written_out(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    model, (x, t, tokens) = decoder(), inputs
    c = model.time_embed(t)[:, None]
    image = model.patch_embed(x) + sincos_2d(12, 3, 3).double()
    sequence = torch.cat([image, model.token_embed(tokens)], dim=1)
    for block in model.blocks:
        sequence = block(sequence, c)
    shift, scale = model.modulation.linear(c * c.sigmoid()).split(12, dim=-1)
    out = model.out(model.norm(sequence[:, :9]) * (1 + scale) + shift)
    torch.testing.assert_close(model(x, t, tokens), unpatchify(out, 2, 3, 3))


@pytest.mark.parametrize(("height", "width"), [(2, 2), (4, 10), (10, 4), (12, 12)])
def test_other_sizes_have_the_positions_of_their_own_grid(height: int, width: int) -> None:
    """By hand, with the fixed table computed for the asked grid: rows are not taken for columns."""
    model, source = decoder(), torch.Generator().manual_seed(3)
    x = torch.randn(2, 1, height, width, dtype=torch.float64, generator=source)
    t, tokens = torch.tensor([9.0]), torch.randn(2, 4, 3, dtype=torch.float64, generator=source)
    rows, columns = height // 2, width // 2
    sequence = torch.cat([model.patch_embed(x) + sincos_2d(12, rows, columns).double(), model.token_embed(tokens)], 1)
    c = model.time_embed(t)[:, None]
    for block in model.blocks:
        sequence = block(sequence, c)
    shift, scale = model.modulation.linear(c * c.sigmoid()).split(12, dim=-1)
    out = model.out(model.norm(sequence[:, : rows * columns]) * (1 + scale) + shift)
    for _ in range(2):  # the second time with the table kept
        torch.testing.assert_close(model(x, t, tokens), unpatchify(out, 2, rows, columns))


def test_a_table_made_in_inference_serves_training_too() -> None:
    model, x = decoder(), torch.randn(1, 1, 4, 4, dtype=torch.float64)
    names = list(model.state_dict())
    tokens = torch.randn(1, 4, 3, dtype=torch.float64)
    with torch.inference_mode():
        model(x, torch.tensor([1.0]), tokens)
    model(x, torch.tensor([1.0]), tokens).sum().backward()
    assert model.patch_embed.proj.weight.grad is not None and list(model.state_dict()) == names


@pytest.mark.parametrize("depth", [1, 2])
def test_alignment_reads_the_image_tokens_after_its_block(inputs: tuple[Tensor, Tensor, Tensor], depth: int) -> None:
    model = decoder(align_depth=depth)
    kept: list[Tensor] = []
    model.blocks[depth - 1].register_forward_hook(lambda module, inputs, output: kept.append(output))
    out, aligned = model.forward_aligned(*inputs)
    assert model.projector is not None
    torch.testing.assert_close(aligned, model.projector(kept[0][:, :9]))
    torch.testing.assert_close(out, model(*inputs))


def test_initialisation() -> None:
    model = decoder(moved=False)
    assert abs(model.null_tokens.std().item() - 0.02) < 0.01
    bound = (6 / (12 + 4)) ** 0.5  # Xavier-uniform of the patch convolution seen as a 12 x 4 matrix
    largest = model.patch_embed.proj.weight.abs().max().item()
    assert 0.8 * bound < largest <= bound
    assert model.token_embed.bias.any(), "made after the pass, so with PyTorch's own bias"


SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}


@pytest.mark.parametrize(
    ("size", "num_tokens", "published", "projector"),
    [
        ("S", 256, 32_571_264, 6_558_464),
        ("B", 256, 129_724_032, 7_344_896),
        ("L", 256, 457_050_240, 7_869_184),
        ("XL", 256, 673_944_960, 8_131_328),
        ("B", 16, 129_908_352, 7_344_896),
        ("L", 16, 457_296_000, 7_869_184),
        ("XL", 16, 674_221_440, 8_131_328),
    ],
)
def test_published_sizes(size: str, num_tokens: int, published: int, projector: int) -> None:
    dim, depth, heads = SIZES[size]
    with torch.device("meta"):
        model = TokenDiT(
            DecoderConfig(dim=dim, depth=depth, heads=heads, align_depth=8),
            channels=16,
            size=16,
            num_tokens=num_tokens,
            token_dim=4096 // num_tokens,
            out_channels=32,
        )
    assert model.projector is not None
    ours_projector = sum(p.numel() for p in model.projector.parameters())
    table = model.positions.numel()  # published as a frozen parameter, here a buffer that is not stored
    assert ours_projector == projector
    assert sum(p.numel() for p in model.parameters()) - projector == published - table
    assert "positions" not in model.state_dict()


def test_patch_dim_limits_what_is_read_of_a_patch(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    x, t, tokens = inputs
    model = decoder(patch_dim=3)
    weight = model.patch_embed.proj.weight.detach().flatten(1)  # (3, 4): one direction of the four pixels is not read
    unread = torch.linalg.svd(weight).Vh[-1].view(2, 2)
    other = x + unread.repeat(3, 3)
    with torch.no_grad():
        torch.testing.assert_close(model(other, t, tokens), model(x, t, tokens))
        assert not torch.allclose(decoder()(other, t, tokens), decoder()(x, t, tokens))


def test_token_positions_make_the_order_of_tokens_matter(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    x, t, tokens = inputs
    plain, placed = decoder(), decoder(token_positions=True)
    assert "token_positions" not in plain.state_dict()
    with torch.no_grad():
        torch.testing.assert_close(plain(x, t, tokens.flip(1)), plain(x, t, tokens))
        assert not torch.allclose(placed(x, t, tokens.flip(1)), placed(x, t, tokens))
        assert placed.token_positions is not None
        placed.token_positions.zero_()  # then it is the decoder without them
        placed.load_state_dict({**plain.state_dict(), "token_positions": placed.token_positions})
        assert torch.equal(placed(x, t, tokens), plain(x, t, tokens))

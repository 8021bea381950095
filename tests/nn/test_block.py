"""Blocks, their feed-forward parts, stochastic branches and norms against formulas."""

import pytest
import torch
from torch import Tensor, nn

from tok1d.nn.attention import Attention, after_prefix, causal, prefix_causal
from tok1d.nn.block import AdaLNBlock, Block, DropPath, Mlp, SwiGLU, swiglu_hidden
from tok1d.nn.norm import Modulation, RMSNorm, modulate


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(("dim", "hidden"), [(768, 2048), (1024, 2816), (1280, 3584), (96, 256), (97, 512)])
def test_swiglu_hidden(dim: int, hidden: int) -> None:
    assert swiglu_hidden(dim) == hidden


def test_swiglu_formula() -> None:
    layer, x = SwiGLU(4, 6).double(), rand(3, 4)
    gate, up = x @ layer.gate.weight.T, x @ layer.up.weight.T
    torch.testing.assert_close(layer(x), (gate / (1 + (-gate).exp()) * up) @ layer.down.weight.T)
    assert all(module.bias is None for module in layer.children())


def test_mlp_forms_of_gelu() -> None:
    x = rand(5, 4)
    exact, tanh = Mlp(4, 6).double(), Mlp(4, 6, tanh=True).double()
    tanh.load_state_dict(exact.state_dict())
    h = exact.fc1(x)
    torch.testing.assert_close(exact(x), exact.fc2(h * 0.5 * (1 + torch.erf(h / 2**0.5))))
    approximate = 0.5 * h * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (h + 0.044715 * h**3)))
    torch.testing.assert_close(tanh(x), exact.fc2(approximate))
    assert not torch.equal(exact(x), tanh(x))


def test_rms_norm_formula_and_scale_invariance() -> None:
    norm = RMSNorm(7, eps=0.0)
    norm.weight.data.uniform_(0.5, 2)
    x = torch.randn(3, 7)
    expected = x / x.square().mean(-1, keepdim=True).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)
    torch.testing.assert_close(norm(1000 * x), norm(x))
    shrunk = RMSNorm(7, eps=1.0)(x)  # eps stands inside the root
    torch.testing.assert_close(shrunk, x / (x.square().mean(-1, keepdim=True) + 1).sqrt())


def test_rms_norm_takes_its_statistic_in_float32() -> None:
    x = torch.full((1, 8), 300.0, dtype=torch.float16)  # 300^2 overflows float16
    torch.testing.assert_close(RMSNorm(8).half()(x), torch.ones(1, 8, dtype=torch.float16))


def test_modulation_order_and_zero_init() -> None:
    x, shift, scale = rand(2, 3, 4), rand(2, 1, 4), rand(2, 1, 4)
    torch.testing.assert_close(modulate(x, shift, scale), x + x * scale + shift)
    layer, c = Modulation(4, 3).double(), rand(2, 4)
    torch.testing.assert_close(torch.cat(layer(c), dim=-1), layer.linear(c * c.sigmoid()))
    layer.zero_init()
    assert all(not part.any() for part in layer(c))


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    layer, rate = DropPath(0.3), 0.3
    x = torch.ones(20000, 2, 2)
    y = layer(x)
    kept = y[:, 0, 0] != 0
    torch.testing.assert_close(y, kept[:, None, None] / (1 - rate) * x)
    assert abs(kept.double().mean().item() - (1 - rate)) < 0.02  # six standard errors
    assert layer.eval()(x) is x
    assert DropPath(0.0)(x) is x


def plain_block(**options: object) -> Block:
    return Block(Attention(8, 2), Mlp(8, 16), (nn.LayerNorm(8), nn.LayerNorm(8)), **options).double()  # type: ignore


def test_block_is_two_residual_branches() -> None:
    block, x = plain_block(), rand(2, 5, 8)
    h = x + block.attn(block.norm1(x), causal)
    torch.testing.assert_close(block(x, causal), h + block.mlp(block.norm2(h)))


def test_dropped_branches_leave_the_input_and_eval_ignores_the_rates() -> None:
    x = rand(64, 5, 8)
    block = plain_block(dropout=(0.4, 0.4), drop_path=0.5)
    assert not torch.equal(block(x), block(x))
    plain = plain_block()
    plain.load_state_dict(block.state_dict())
    torch.testing.assert_close(block.eval()(x), plain(x))

    untouched = plain_block(drop_path=0.5)(x) == x
    whole = untouched.flatten(1).all(1)
    assert 0 < whole.sum() < 64, "some samples lose both branches, others do not"
    assert not untouched[~whole].any()


def test_dropout_rates_belong_to_their_branches() -> None:
    x = rand(4, 5, 8)
    block = plain_block(dropout=(1.0, 0.0))
    torch.testing.assert_close(block(x), x + block.mlp(block.norm2(x)))
    block = plain_block(dropout=(0.0, 1.0))
    torch.testing.assert_close(block(x), x + block.attn(block.norm1(x)))


def test_adaln_zero_block_is_the_identity() -> None:
    block, x, c = AdaLNBlock(8, 2).double(), rand(2, 5, 8), rand(2, 1, 8)
    assert not torch.equal(block(x, c), x)
    block.modulation.zero_init()
    assert torch.equal(block(x, c), x)


def test_adaln_block_formula() -> None:
    block, x, c = AdaLNBlock(8, 2, mlp_ratio=2.0).double(), rand(2, 5, 8), rand(2, 1, 8)
    six = block.modulation.linear(c * c.sigmoid()).split(8, dim=-1)

    def norm(y: Tensor) -> Tensor:
        return (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    h = x + six[2] * block.attn(norm(x) * (1 + six[1]) + six[0])
    torch.testing.assert_close(block(x, c), h + six[5] * block.mlp(norm(h) * (1 + six[4]) + six[3]))


def test_one_condition_for_the_batch_equals_a_row_each() -> None:
    block, x, c = AdaLNBlock(8, 2).double(), rand(3, 5, 8), rand(1, 1, 8)
    torch.testing.assert_close(block(x, c), block(x, c.expand(3, 5, 8)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [slice(3), slice(3, None)])
def test_some_rows_of_a_block_are_those_of_the_whole(rows: slice, bias: bool) -> None:
    """In value and in gradient, although queries, MLP and projection of the others are never computed."""
    x, c = rand(2, 7, 8).requires_grad_(), rand(2, 1, 8)
    norms = (nn.LayerNorm(8), nn.LayerNorm(8))
    block = Block(Attention(8, 2, bias=bias, qk_norm="rms"), Mlp(8, 16), norms, layer_scale=0.5).double()
    adaln = AdaLNBlock(8, 2).double()
    for parameter in adaln.parameters():
        nn.init.normal_(parameter, std=0.3)
    for run in (block, lambda x, **how: adaln(x, c, **how)):
        whole = run(x)[:, rows]
        (expected,) = torch.autograd.grad(whole.square().sum(), x)
        part = run(x, rows=rows)
        torch.testing.assert_close(part, whole)
        torch.testing.assert_close(torch.autograd.grad(part.square().sum(), x)[0], expected)


def test_rows_after_a_prefix_are_those_of_the_whole() -> None:
    x = rand(2, 7, 8)
    block = Block(Attention(8, 2), Mlp(8, 16), (nn.LayerNorm(8), nn.LayerNorm(8))).double()
    expected = block(x, prefix_causal(4))[:, 4:]
    torch.testing.assert_close(block(x, after_prefix(4), slice(4, None)), expected)

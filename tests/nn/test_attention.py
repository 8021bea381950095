"""Every way to attend equals plain attention under the dense mask that says the same."""

import pytest
import torch
from torch import Tensor

from tok1d.nn.attention import Attention, KVCache, causal, full, masked, prefix_causal, prefix_causal_mask

BATCH, HEADS, LENGTH, WIDTH = 2, 3, 9, 4


@pytest.fixture
def qkv() -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, BATCH, HEADS, LENGTH, WIDTH, generator=source, dtype=torch.float64)
    return q, k, v


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The definition: softmax(q k' / sqrt(d)) v over the keys a boolean mask allows."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v


def tril() -> Tensor:
    return torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()


def test_full_and_masked_follow_the_definition(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    everything = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
    torch.testing.assert_close(full(*qkv), softmax_attention(*qkv, everything))
    banded = tril() & ~torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(-3)
    torch.testing.assert_close(masked(banded)(*qkv), softmax_attention(*qkv, banded))


def test_causal_is_the_lower_triangle(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    torch.testing.assert_close(causal(*qkv), masked(tril())(*qkv))


def test_prefix_causal_mask_entry_by_entry() -> None:
    prefix, num_tokens = 3, 4
    mask = prefix_causal_mask(prefix, num_tokens)
    for row in range(prefix + num_tokens):
        for column in range(prefix + num_tokens):
            allowed = column < prefix if row < prefix else column <= row
            assert bool(mask[row, column]) == allowed, (row, column)


@pytest.mark.parametrize("prefix", [1, 4, LENGTH - 1, LENGTH])
def test_prefix_causal_equals_the_dense_mask(qkv: tuple[Tensor, Tensor, Tensor], prefix: int) -> None:
    dense = masked(prefix_causal_mask(prefix, LENGTH - prefix))(*qkv)
    torch.testing.assert_close(prefix_causal(prefix)(*qkv), dense)


def test_prefix_causal_has_the_gradient_of_the_dense_mask(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    gradients = []
    for attend in (prefix_causal(4), masked(prefix_causal_mask(4, LENGTH - 4))):
        leaves = [x.clone().requires_grad_() for x in qkv]
        attend(*leaves).square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for ours, dense in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, dense)


@pytest.mark.parametrize("pieces", [[1] * LENGTH, [LENGTH], [4, 1, 1, 3], [2, 7]])
@pytest.mark.parametrize("spare", [0, 7])
def test_cache_in_pieces_equals_causal(qkv: tuple[Tensor, Tensor, Tensor], pieces: list[int], spare: int) -> None:
    cache = KVCache(BATCH, HEADS, LENGTH + spare, WIDTH, dtype=torch.float64, device=torch.device("cpu"))
    parts = zip(*(x.split(pieces, dim=2) for x in qkv), strict=True)
    outputs = [cache.attend(*part) for part in parts]
    torch.testing.assert_close(torch.cat(outputs, dim=2), causal(*qkv))
    assert cache.filled == LENGTH


def test_a_full_cache_takes_no_more(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    cache = KVCache(BATCH, HEADS, LENGTH, WIDTH, dtype=torch.float64, device=torch.device("cpu"))
    cache.attend(*qkv)
    with pytest.raises(AssertionError, match="full"):
        cache.attend(*(x[:, :, :1] for x in qkv))


@pytest.mark.parametrize("bias", [True, False])
def test_layer_splits_its_projection_into_q_k_v_and_heads(bias: bool) -> None:
    torch.manual_seed(0)
    dim, heads = 6, 2
    layer = Attention(dim, heads, bias=bias).double()
    x = torch.randn(2, 5, dim, dtype=torch.float64)
    projections = torch.nn.functional.linear(x, layer.qkv.weight, layer.qkv.bias).split(dim, dim=-1)
    each = []
    for head in range(heads):
        q, k, v = (part[..., head * 3 : head * 3 + 3] for part in projections)
        each.append(torch.softmax(q @ k.mT / 3**0.5, dim=-1) @ v)
    torch.testing.assert_close(layer(x), layer.proj(torch.cat(each, dim=-1)))
    assert (layer.qkv.bias is not None) == (layer.proj.bias is not None) == bias


def test_full_attention_is_permutation_equivariant_and_causal_is_not() -> None:
    torch.manual_seed(0)
    layer = Attention(8, 2).double()
    x, order = torch.randn(2, 6, 8, dtype=torch.float64), torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])
    assert not torch.allclose(layer(x[:, order], causal), layer(x, causal)[:, order])


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="multiple of 4 heads, got 10"):
        Attention(10, 4)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_normalised_queries_and_keys_forget_their_length(kind: str) -> None:
    torch.manual_seed(0)
    layer = Attention(8, 2, qk_norm=kind).double()  # type: ignore[arg-type]
    layer.qkv.weight.data *= 10  # so that the norms' eps is small beside the variances
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    before = layer(x)
    layer.qkv.weight.data[:16] *= 3  # queries and keys
    layer.qkv.bias.data[:16] *= 3
    torch.testing.assert_close(layer(x), before, atol=1e-4, rtol=1e-4)
    layer.q_norm.weight.data *= 3
    assert not torch.allclose(layer(x), before, atol=1e-3)


def test_the_first_projection_may_have_no_bias_alone() -> None:
    layer = Attention(8, 2, qkv_bias=False)
    assert layer.qkv.bias is None and layer.proj.bias is not None

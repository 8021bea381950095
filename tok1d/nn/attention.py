"""Multi-head self-attention on PyTorch's scaled_dot_product_attention.

The argument `attend(q, k, v)` of the layer decides which keys a query attends to, so full, causal, masked,
prefix-causal and cached attention share one layer. Tensors q, k, v are (B, heads, L, head_dim).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention

from tok1d.nn.norm import RMSNorm
from tok1d.nn.position import rotate

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def full(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every query attends to every key."""
    return scaled_dot_product_attention(q, k, v)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Query i attends to keys 0..i. k and v may have fewer heads than q, see `shared`."""
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared(q, k))


def shared(q: Tensor, k: Tensor) -> bool:
    """Whether groups of query heads share one head of keys and values (grouped-query attention, arXiv 2305.13245)."""
    return q.shape[1] != k.shape[1]


def masked(mask: Tensor) -> Attend:
    """Attention with a boolean mask, broadcastable to (B, heads, queries, keys); True: the query attends to the key."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=shared(q, k))

    return attend


def dropped(rate: float) -> Attend:
    """Full attention with dropout of the attention weights at that rate, as in the training of BERT."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, dropout_p=rate)

    return attend


def rotary(cos: Tensor, sin: Tensor, attend: Attend = full) -> Attend:
    """`attend` on rotated queries and keys; cos and sin are broadcastable to (B, heads, L, head_dim / 2)."""

    def attend_rotated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(rotate(q, cos, sin), rotate(k, cos, sin), v)

    return attend_rotated


def prefix_causal_mask(prefix: int, num_tokens: int, device: torch.device | None = None) -> Tensor:
    """(prefix + T, prefix + T) bool: the prefix attends to itself, token i to the prefix and to tokens 0..i."""
    length = prefix + num_tokens
    mask = torch.ones(length, length, dtype=torch.bool, device=device).tril_()
    mask[:prefix, :prefix] = True
    return mask


def prefix_causal(prefix: int) -> Attend:
    """The first `prefix` positions attend to each other, later tokens to the prefix and causally to themselves.

    The result equals `masked(prefix_causal_mask(...))`. It is faster: the prefix has no mask, so fused kernels apply,
    and its scores with later tokens are not computed.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        num_tokens = q.shape[2] - prefix
        head = scaled_dot_product_attention(q[:, :, :prefix], k[:, :, :prefix], v[:, :, :prefix])
        if num_tokens == 0:
            return head
        tail = after_prefix(prefix)(q[:, :, prefix:], k, v)
        # Concatenated in the layout (B, L, heads, head_dim) of the projection that follows, which saves a copy.
        return torch.cat([head.transpose(1, 2), tail.transpose(1, 2)], dim=1).transpose(1, 2)

    return attend


def after_prefix(prefix: int) -> Attend:
    """`prefix_causal` for the queries of the T later tokens only; k and v cover all prefix + T positions."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = prefix_causal_mask(prefix, q.shape[2], q.device)[prefix:]
        return scaled_dot_product_attention(q, k, v, attn_mask=rows)

    return attend


class KVCache:
    """Keys and values of one layer for cached causal decoding, in buffers of fixed length that are filled in order.

    Args:
        batch, heads, length, head_dim: the buffers are (batch, heads, length, head_dim), initially zero.
        allowed: bool mask, broadcastable to (batch, heads, length, length); default: causal.
    """

    def __init__(
        self,
        batch: int,
        heads: int,
        length: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        allowed: Tensor | None = None,
    ) -> None:
        self.k = torch.zeros(batch, heads, length, head_dim, dtype=dtype, device=device)
        self.v = torch.zeros_like(self.k)
        self.filled = 0
        causal_rows = torch.ones(length, length, dtype=torch.bool, device=device).tril_()
        self._rows = causal_rows if allowed is None else allowed

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append n keys and values to the buffers, and let n queries attend to all stored positions under the mask.

        q is (B, heads, n, head_dim); k and v may have fewer heads, see `shared`. The result has the shape of q.
        """
        start, end = self.filled, self.filled + k.shape[2]
        assert end <= self.k.shape[2], f"cache of {self.k.shape[2]} positions is full"
        self.k[:, :, start:end] = k
        self.v[:, :, start:end] = v
        self.filled = end
        mask, grouped = self._rows[..., start:end, :], shared(q, k)
        return scaled_dot_product_attention(q, self.k, self.v, attn_mask=mask, enable_gqa=grouped)

    def select(self, rows: Tensor) -> None:
        """Make the rows (R,) int64 of the batch, some of them perhaps several times, the new batch."""
        self.k, self.v = self.k[rows], self.v[rows]
        if self._rows.ndim == 4:
            self._rows = self._rows[rows]


def head_norm(kind: Literal["none", "layer", "rms"], head_dim: int) -> nn.Module:
    """LayerNorm or RMSNorm over the channels of a head, for queries or keys; "none": the identity."""
    if kind == "none":
        return nn.Identity()
    return nn.LayerNorm(head_dim) if kind == "layer" else RMSNorm(head_dim, eps=1e-6)


class Attention(nn.Module):
    """Self-attention with one projection for queries, keys and values (rows ordered q, k, v, and by heads in each).

    Args:
        dim: width of the sequence, a multiple of `heads`.
        bias: whether both projections have a bias.
        qkv_bias: whether the first projection has one; default: `bias`.
        qk_norm: normalise queries and keys over the channels of a head: "layer" (LayerNorm) or "rms" (RMSNorm).
        kv_heads: heads of keys and values, a divisor of `heads`, for grouped-query attention (causal or cached);
            default: `heads`.

    Raises:
        ValueError: `heads` does not divide `dim`, or `kv_heads` does not divide `heads`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        bias: bool = True,
        qkv_bias: bool | None = None,
        qk_norm: Literal["none", "layer", "rms"] = "none",
        kv_heads: int | None = None,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"attention: expected a width that is a multiple of {heads} heads, got {dim}")
        if heads % (kv_heads or heads):
            raise ValueError(f"attention: expected kv_heads to divide {heads} heads, got {kv_heads}")
        self.heads = heads
        self.kv_heads = kv_heads or heads
        rows = (heads + 2 * self.kv_heads) * (dim // heads)
        self.qkv = nn.Linear(dim, rows, bias=bias if qkv_bias is None else qkv_bias)
        self.proj = nn.Linear(dim, dim, bias=bias)
        self.q_norm, self.k_norm = (head_norm(qk_norm, dim // heads) for _ in range(2))

    def forward(self, x: Tensor, attend: Attend = full, rows: slice | None = None) -> Tensor:
        """(B, L, dim) -> (B, L, dim), or the outputs at the positions `rows` only; no other queries are computed."""
        batch, length, dim = x.shape
        if rows is None:
            split = [self.heads, self.kv_heads, self.kv_heads]
            q, k, v = self.qkv(x).view(batch, length, -1, dim // self.heads).transpose(1, 2).split(split, dim=1)
        else:
            parts = [dim, self.qkv.out_features - dim]
            (wq, wkv), bias = self.qkv.weight.split(parts), self.qkv.bias
            bq, bkv = (None, None) if bias is None else bias.split(parts)
            q = F.linear(x[:, rows], wq, bq).unflatten(2, (self.heads, -1)).transpose(1, 2)
            k, v = F.linear(x, wkv, bkv).unflatten(2, (2 * self.kv_heads, -1)).transpose(1, 2).chunk(2, dim=1)
        q, k = self.q_norm(q), self.k_norm(k)
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention of a sequence to another one, both of width `dim`, a multiple of `heads`; every key is attended to."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, L, dim) and the sequence attended to (B, K, dim) -> (B, L, dim)."""
        q = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(2, (2 * self.heads, -1)).transpose(1, 2).chunk(2, dim=1)
        return self.proj(full(q, k, v).transpose(1, 2).flatten(2))

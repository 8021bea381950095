"""Multi-head self-attention on PyTorch's scaled_dot_product_attention.

What a query may see is a function `attend(q, k, v)` handed to the layer, so one layer serves every model:
full, causal, masked, tokens over a prefix that is blind to them, and cached decoding.
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
    """Every query sees every key. q, k, v: (B, heads, L, head_dim)."""
    return scaled_dot_product_attention(q, k, v)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Query i sees keys 0..i. q: (B, heads, L, head_dim), k and v alike, or with fewer heads that queries share."""
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared(q, k))


def shared(q: Tensor, k: Tensor) -> bool:
    """Whether groups of query heads share a key and value head."""
    return q.shape[1] != k.shape[1]


def masked(mask: Tensor) -> Attend:
    """Attention under a boolean mask, broadcastable to (B, heads, L, L); True means "may attend"."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=shared(q, k))

    return attend


def dropped(rate: float) -> Attend:
    """Every query sees every key, but a share `rate` of the attention weights is dropped (BERT's, in training)."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, dropout_p=rate)

    return attend


def rotary(cos: Tensor, sin: Tensor, attend: Attend = full) -> Attend:
    """`attend` with queries and keys turned first; cos and sin broadcastable to (B, heads, L, head_dim / 2)."""

    def attend_rotated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(rotate(q, cos, sin), rotate(k, cos, sin), v)

    return attend_rotated


def prefix_causal_mask(prefix: int, num_tokens: int, device: torch.device | None = None) -> Tensor:
    """Boolean (prefix + T, prefix + T) mask: the prefix sees only itself; token i sees prefix and tokens 0..i."""
    length = prefix + num_tokens
    mask = torch.ones(length, length, dtype=torch.bool, device=device).tril_()
    mask[:prefix, :prefix] = True
    return mask


def prefix_causal(prefix: int) -> Attend:
    """The first `prefix` positions attend to each other only; later ones to the prefix and causally to themselves.

    Equal to `masked(prefix_causal_mask(...))`, but the prefix runs without a mask (so fused kernels apply) and
    the score work of the prefix over the later tokens is not done at all.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        num_tokens = q.shape[2] - prefix
        head = scaled_dot_product_attention(q[:, :, :prefix], k[:, :, :prefix], v[:, :, :prefix])
        if num_tokens == 0:
            return head
        tail = after_prefix(prefix)(q[:, :, prefix:], k, v)
        # Joined in the layout (B, L, heads, head_dim) of the projection that follows, which then copies nothing.
        return torch.cat([head.transpose(1, 2), tail.transpose(1, 2)], dim=1).transpose(1, 2)

    return attend


def after_prefix(prefix: int) -> Attend:
    """`prefix_causal` of the later positions alone: q (B, heads, T, head_dim), k and v of all prefix + T positions."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = prefix_causal_mask(prefix, q.shape[2], q.device)[prefix:]
        return scaled_dot_product_attention(q, k, v, attn_mask=rows)

    return attend


class KVCache:
    """Keys and values of one layer at a fixed length, filled from the left during causal decoding.

    Args:
        batch, heads, length, head_dim: the buffers are (batch, heads, length, head_dim), zero at first.
        allowed: bool, broadcastable to (batch, heads, length, length), what each place may attend to; default: itself
            and all before it.
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
        """Store the new keys and values after the old ones and attend causally over all of them."""
        start, end = self.filled, self.filled + k.shape[2]
        assert end <= self.k.shape[2], f"cache of {self.k.shape[2]} positions is full"
        self.k[:, :, start:end] = k
        self.v[:, :, start:end] = v
        self.filled = end
        mask, grouped = self._rows[..., start:end, :], shared(q, k)
        return scaled_dot_product_attention(q, self.k, self.v, attn_mask=mask, enable_gqa=grouped)


def head_norm(kind: Literal["none", "layer", "rms"], head_dim: int) -> nn.Module:
    """The normalisation of queries or keys, an identity without any."""
    if kind == "none":
        return nn.Identity()
    return nn.LayerNorm(head_dim) if kind == "layer" else RMSNorm(head_dim, eps=1e-6)


class Attention(nn.Module):
    """Self-attention with one fused query-key-value projection (rows ordered q, k, v; head-major inside each).

    Args:
        dim: width of the sequence, a multiple of `heads`.
        bias: whether both projections carry a bias.
        qkv_bias: of the first projection alone, where it differs.
        qk_norm: normalise queries and keys over the channels of a head: "layer" (LayerNorm) or "rms" (RMSNorm).
        kv_heads: heads of keys and values where queries share them in groups (arXiv 2305.13245), a divisor of
            `heads`; for causal and cached attention.
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
            raise ValueError(f"attention width {dim} is not a multiple of its {heads} heads")
        if heads % (kv_heads or heads):
            raise ValueError(f"{heads} attention heads do not divide into {kv_heads} groups")
        self.heads = heads
        self.kv_heads = kv_heads or heads
        rows = (heads + 2 * self.kv_heads) * (dim // heads)
        self.qkv = nn.Linear(dim, rows, bias=bias if qkv_bias is None else qkv_bias)
        self.proj = nn.Linear(dim, dim, bias=bias)
        self.q_norm, self.k_norm = (head_norm(qk_norm, dim // heads) for _ in range(2))

    def forward(self, x: Tensor, attend: Attend = full, rows: slice | None = None) -> Tensor:
        """(B, L, dim) -> (B, L, dim), or only the positions `rows`: then `attend` gets the queries of these alone."""
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

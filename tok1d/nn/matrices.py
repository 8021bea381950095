"""The weight matrices of a network's blocks, which Muon trains."""

from __future__ import annotations

from torch import nn


def block_matrices(module: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable weights of linear layers inside the members of an `nn.ModuleList`, by name, in order.

    These are the matrices between the hidden states of a repeated block: attention, feed-forward and modulation. The
    layers before the first block and after the last one, embeddings, convolutions and vectors are not among them.
    """
    inside: set[int] = set()
    for part in module.modules():
        for block in part if isinstance(part, nn.ModuleList) else ():
            inside |= {id(each.weight) for each in block.modules() if isinstance(each, nn.Linear)}
    named = module.named_parameters()
    return {name: p for name, p in named if id(p) in inside and p.requires_grad and p.dim() == 2}

"""Roles of parameters: found by the name of a parameter or of a module above it, the innermost declaration first."""

from typing import ClassVar

from torch import nn

from tok1d.nn.embed import PatchEmbed
from tok1d.nn.roles import CLASSES, GRID, PIXELS_IN, TOKENS, Roles, roles_of


class Inner(nn.Module):
    roles: ClassVar[Roles] = {"layer": (TOKENS, GRID)}

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = nn.Linear(2, 2), nn.Linear(2, 2)


class Outer(nn.Module):
    roles: ClassVar[Roles] = {"inner": (CLASSES,)}

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.patch_embed = Inner(), PatchEmbed(2, 1, 4)
        self.free = nn.Linear(2, 2)


def test_the_innermost_declaration_counts() -> None:
    model = Outer()
    assert roles_of(model, "inner.layer.weight") == (model.inner, (TOKENS, GRID))
    assert roles_of(model, "inner.other.bias") == (model, (CLASSES,))
    assert roles_of(model, "patch_embed.proj.weight") == (model.patch_embed, (PIXELS_IN,))
    assert roles_of(model, "free.weight") == (model, ())

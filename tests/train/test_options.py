"""Activation checkpointing and compilation change what a step costs, not what it does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tok1d.config.load import load_recipe
from tok1d.errors import ConfigError
from tok1d.nn.attention import Attention
from tok1d.nn.block import Block, Mlp
from tok1d.train import options, rng, run
from tok1d.train.options import apply_options, blocks_of, no_compiler
from tok1d.train.tasks import build_task
from tok1d.zoo import store
from tok1d.zoo.card import Card

Tiny = Callable[..., str]


class Small(nn.Module):
    """One block with dropout, and an error."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        norms = (nn.LayerNorm(8), nn.LayerNorm(8))
        self.blocks = nn.ModuleList([Block(Attention(8, 2), Mlp(8, 16), norms, dropout=(0.0, 0.2))])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x.square().mean()


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    loss = module(x)
    loss.backward()
    return [loss.detach(), *(p.grad for p in module.parameters() if p.grad is not None)]


@pytest.mark.parametrize("kind", ["tokenizer", "maetok", "smap", "titok", "generator", "sit"])
def test_checkpointed_blocks_make_the_same_steps(
    tiny: Tiny, tmp_path: Any, fashion: None, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, made = {}, {"generator": "tokenizer", "sit": "maetok"}.get(kind)
    if made:
        torch.manual_seed(0)
        store.save_model(store.build_model(load_recipe(tiny(made)).model), tmp_path / "tokenizer", Card())
        keys = {"tokenizer": tmp_path / "tokenizer", "cache": tmp_path / "cache"}
    ends, calls = [], [0]
    recomputed = options.checkpoint

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return recomputed(*args, **kwargs)

    monkeypatch.setattr(options, "checkpoint", counted)
    for saves in (False, True):
        chosen = [f"out={tmp_path / str(saves)}", "train.steps=3", f"train.checkpoint_activations={saves}"]
        recipe = load_recipe(tiny(kind, **keys), chosen)
        task = build_task(recipe)
        run.fit(recipe, task, run.folder.prepare(recipe), quiet=True)
        ends.append(task.model.state_dict())
        assert bool(calls[0]) == saves
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("large", [False, True])
def test_checkpointed_blocks_use_the_same_random_numbers_over_several_processes(
    rank: int, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backward pass runs after the step's random numbers were restored, as in the loop."""
    if large:  # each process uses its own random numbers, here after others
        monkeypatch.setattr(rng, "SHARED_NUMBERS", 1)
    x, found = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(3)), []
    for saves in (False, True):
        module = Small()
        apply_options(module, checkpoint_activations=saves, compile=False)
        with rng.seeded(1, 2, rank, 2, "", [x]):
            loss = module(torch.nn.functional.dropout(x, 0.3))
        torch.manual_seed(9)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in module.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_blocks_keep_only_what_they_were_given() -> None:
    kept: list[int] = []

    def bytes_kept(module: nn.Module) -> int:
        found: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: found.update({t.data_ptr(): t.nbytes}) or t, lambda t: t
        ):
            module(torch.ones(2, 64, 8, requires_grad=True))
        return sum(found.values())

    for saves in (False, True):
        module = Small().train()
        apply_options(module, checkpoint_activations=saves, compile=False)
        kept.append(bytes_kept(module))
    assert kept[1] < 0.5 * kept[0]


def test_random_numbers_repeat_in_the_second_pass() -> None:
    plain, saving, x = Small().train(), Small().train(), torch.randn(3, 5, 8)
    apply_options(saving, checkpoint_activations=True, compile=False)
    assert saving.state_dict().keys() == plain.state_dict().keys()
    for a, b in zip(gradients(plain, x), gradients(saving, x), strict=True):
        torch.testing.assert_close(b, a)


def test_frozen_and_nested_blocks_are_left_alone() -> None:
    outer = nn.ModuleList([nn.Sequential(Small()), Small()])
    assert len(blocks_of(outer)) == 2
    small = Small()
    assert blocks_of(small) == [small.blocks[0]]
    small.requires_grad_(False)
    assert blocks_of(small) == [] and blocks_of(nn.Linear(2, 2)) == []


def test_without_a_compiler_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "no_compiler", lambda: "torch.compile needs a C++ compiler on a CPU, got none")
    with pytest.raises(ConfigError, match=r"^train\.compile: torch\.compile needs a C\+\+ compiler"):
        apply_options(Small(), checkpoint_activations=False, compile=True)


@pytest.mark.slow
@pytest.mark.skipif(bool(no_compiler()), reason=f"{no_compiler()}; with one this runs")
def test_compiled_blocks_make_the_same_gradients() -> None:
    # In eval mode: a compiled dropout uses other random numbers.
    plain, compiled, x = Small().eval(), Small().eval(), torch.randn(3, 5, 8)
    apply_options(compiled, checkpoint_activations=False, compile=True)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for a, b in zip(gradients(plain, x), gradients(compiled, x), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6)

"""A budget head: what it learns, how it is stored with its tokenizer, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tok1d
from tok1d.analyze.budget import budgets
from tok1d.analyze.request import Budgets
from tok1d.cli import app as cli
from tok1d.config.load import load_recipe
from tok1d.data.images import ImageSource, open_images
from tok1d.errors import ConfigError, InputError
from tok1d.losses.pixel import psnr_per_image
from tok1d.tokenizers.budget import BudgetHead, BudgetHeadConfig
from tok1d.train import run
from tok1d.train.tasks import build_task
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.weights import fingerprint

Tiny = Callable[..., str]
SMALL = ["train.steps=4", "train.warmup=1", "train.batch_size=8", "train.log_every=2", "evaluate.num_images=8"]
SMALL += ["model.width=8", "model.depth=1", "train.save_every=0"]


@pytest.fixture
def saved(tiny: Tiny, fashion: None, tmp_path: Path) -> Callable[..., tuple[Any, Any]]:
    """saved(kind, *overrides): a tokenizer with random weights in a folder, and the recipe of its head."""

    def make(kind: str, *overrides: str, head: tuple[str, ...] = ()) -> tuple[Any, Any]:
        recipe = load_recipe(tiny(kind), overrides)
        torch.manual_seed(0)
        model = store.build_model(recipe.model).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        store.save_model(model, tmp_path / kind, Card())
        data = f"data={{image_size: {recipe.data.image_size}, pad: {recipe.data.pad}}}"
        settings = [data, f"init_from={tmp_path / kind}", f"out={tmp_path / 'run'}", *SMALL, *head]
        return model, load_recipe("fashion_mnist/budget", settings)

    return make


def test_a_head_learns_planted_qualities() -> None:
    """The error of a prefix is that of all tokens plus exp(linear in the tokens): it predicts this for new tokens."""
    torch.manual_seed(0)
    head = BudgetHead(BudgetHeadConfig(num_tokens=4, token_dim=2, width=32, depth=1))
    weights = torch.randn(8, 3)

    def batch(num: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens, last = torch.randn(num, 4, 2) * 4 + 1, 20 + 2 * torch.randn(num)
        counts = torch.rand(num, 3).argsort(1)[:, :2] + 1
        error = 10 ** (-last[:, None] / 10) + (tokens.flatten(1) @ weights / 20 - 4).exp()
        return tokens, last, counts, (-10 * torch.log10(error)).gather(1, counts - 1)

    head.fit([batch(256), batch(256)])
    torch.testing.assert_close(head.mean, torch.tensor([1.0] * 8 + [20.0]), atol=0.7, rtol=0)
    torch.testing.assert_close(head.std, torch.tensor([4.0] * 8 + [2.0]), atol=0.5, rtol=0)
    tokens, last, _, _ = batch(64)
    predicted = head.qualities(tokens, last)
    assert torch.equal(predicted[:, -1], last) and (predicted[:, :-1] < last[:, None]).all()
    before = float(head.losses(batch(512), 0.0)["loss"].detach())
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        head.losses(batch(64), 0.5)["loss"].backward()
        optimizer.step()
    assert float(head.losses(batch(512), 1.0)["loss"].detach()) < 0.05 * before


def test_equal_images_have_a_finite_loss() -> None:
    head = BudgetHead(BudgetHeadConfig(num_tokens=2, token_dim=1))
    batch = torch.zeros(1, 2, 1), torch.tensor([torch.inf]), torch.tensor([[1]]), torch.tensor([[torch.inf]])
    head.fit([batch])
    loss = head.losses(batch, 0.0)["loss"]
    loss.backward()
    assert float(loss.detach()) < 10 and all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("tokenizer", ()),
        ("tokenizer", ("model.quantiser={name: vq, size: 16}",)),
        ("smap", ()),
        ("smap", ("model.num_tokens=2", "evaluate.keep=[1, 4]", "model.bottleneck={name: vq, size: 16, levels: 2}")),
    ],
)
def test_batches_hold_the_qualities_of_decoded_prefixes(saved: Any, kind: str, overrides: tuple[str, ...]) -> None:
    if "levels" in str(overrides):
        overrides = (*overrides[:2], "model.bottleneck={name: vq, size: 16, l2: false, levels: 2}")
    tokenizer, recipe = saved(kind, *overrides, head=("model.prefixes=3",))
    task = build_task(recipe)
    tokens, last, counts, found = task.batch(0, 0, 1)
    again = task.batch(0, 0, 1)
    assert all(torch.equal(a, b) for a, b in zip((tokens, last, counts, found), again)) and last.shape == (8,)
    assert counts.shape == found.shape == (8, 3) and all(len(set(row)) == 3 for row in counts.tolist())
    assert task.model.config.num_tokens == tokenizer.spec.length == tokens.shape[1]
    if tokenizer.spec.deterministic:
        pixels, labels = task.images.batch(range(64))
        with torch.no_grad():
            every = tokenizer.encode(pixels, labels)
            places = (every == tokens[0]).flatten(1).all(1).nonzero()[:, 0]  # ids may be those of several images
            codes = tokens[:1].expand(len(places), *tokens.shape[1:])
            for keep, quality in ((int(counts[0, 0]), found[0, 0]), (tokens.shape[1], last[0])):
                decoded = tokenizer.decode(codes, labels[places], keep=keep)
                assert float((psnr_per_image(decoded, pixels[places]) - quality).abs().min()) < 1e-3


def test_a_run_stores_the_head_with_a_copy_of_the_tokenizer(saved: Any, tmp_path: Path, capsys: Any) -> None:
    tokenizer, recipe = saved("smap")
    run.train(recipe, quiet=True)
    loaded = tok1d.load(tmp_path / "run")
    assert fingerprint(loaded) == fingerprint(tokenizer) and not tok1d.load(tmp_path / "smap").budget_heads
    (head,) = loaded.budget_heads
    assert head.card.trained["steps"] == 4 and head.config.num_tokens == 4
    names = {record.name for record in head.card.records}
    assert names == {"quality_error", "budget_within_one"}
    loaded.save_pretrained(tmp_path / "copy")
    (again,) = tok1d.load(tmp_path / "copy").budget_heads
    x = torch.rand(3, 1, 32, 32)
    tokens = loaded.encode(x)
    last = psnr_per_image(loaded.decode(tokens), x)
    predicted = head.qualities(tokens, last)
    assert torch.equal(again.qualities(tokens, last), predicted)
    wanted = float(predicted.detach()[:, 1].mean())
    found = loaded.budget(x, quality=wanted, by="head")
    expected = [next((k + 1 for k, q in enumerate(row) if q >= wanted), 4) for row in predicted]
    assert found.keep.tolist() == expected
    torch.testing.assert_close(found.fixed, predicted.mean(0))
    assert cli.run(["export", str(tmp_path / "run"), "--out", str(tmp_path / "exported")]) == 2
    assert "budget head, which is not exported" in capsys.readouterr().err


def test_what_does_not_fit_is_refused(saved: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a budget head needs the tokenizer that it belongs to, got null"):
        load_recipe("fashion_mnist/budget", ["init_from=null"])
    for wrong, message in (
        ("init_from=fashion-mnist-cnn", "expected the tokenizer whose prefixes are measured, got another model"),
        ("init_from=fashion-mnist-maetok", "expected a tokenizer of ordered tokens"),
        ("data.image_size=32", "data.image_size: expected 28 as the images of fashion-mnist-smap, got 32"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_task(load_recipe("fashion_mnist/budget", [wrong]))


def test_an_analysis_finds_images_that_need_more(saved: Any, fashion: None) -> None:
    """Prefixes of planted qualities: even images need one token, odd ones all four."""
    tokenizer, _ = saved("tokenizer")
    encode = tokenizer.encode_images

    def decoded(tokens: torch.Tensor, *args: object, keep: torch.Tensor, **options: object) -> torch.Tensor:
        number = tokens[:, 0, 0].round()
        error = torch.where((number % 2 == 1) & (keep < 4), 0.1, 0.01)
        return (originals[number.long()] + error[:, None, None, None].sqrt()).clamp(-9, 9)

    images = open_images(ImageSource("fashion_mnist", image_size=28, channels=1), "test")
    originals = images.batch(range(64))[0] * 0 + 0.5
    images.batch = lambda numbers, **options: (originals[list(numbers)], torch.tensor(list(numbers)) % 10)
    started = iter(range(0, 64, 4))
    tokenizer.encode = lambda x, cond=None: (
        (next(started) + torch.arange(len(x))).float()[:, None, None].expand(-1, 4, 4) * 1.0
    )
    tokenizer.decode = decoded
    found = budgets(tokenizer, images, Budgets(num=64, quality=(15.0,), batch_size=16))
    (choice,) = found.choices
    assert choice.counts == [32, 0, 0, 32] and choice.tokens == 2.5
    assert choice.error == pytest.approx(0.01, abs=1e-5)
    assert choice.fixed_error == pytest.approx(0.055, abs=1e-5) and choice.gain == pytest.approx(1 - 0.01 / 0.055)
    assert all(number % 2 for number in found.most) and not any(number % 2 for number in found.least)
    assert choice.by_class["Bag"] == 1 and choice.by_class["Trouser"] == 4
    assert "with 2.5 tokens on average the error is 82% lower" in found.said() and encode is not None


def test_an_analysis_refuses_unordered_tokens(fashion: None) -> None:
    with pytest.raises(InputError, match="budget: these tokens have no order"):
        tok1d.analyze("budget", "fashion-mnist-maetok", "fashion_mnist", num=4)

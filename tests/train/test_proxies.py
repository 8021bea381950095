"""Proxies measure fixed quantities at fixed sizes and seeds, and do not change the training."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tok1d.config.load import load_recipe
from tok1d.config.recipe import Recipe, TrainConfig
from tok1d.errors import ConfigError
from tok1d.evaluate.networks import CNNConfig
from tok1d.evaluate.probe import linear_probe
from tok1d.tokenizers.base import TokenSpec
from tok1d.train import proxies
from tok1d.train.log import read_log
from tok1d.train.loop import fit
from tok1d.train.proxies import Proxies
from tok1d.train.task import Measure, Task
from tok1d.train.tasks import build_task


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies of toy sizes."""
    for name, value in (("GENERATOR_STEPS", 2), ("GENERATOR_BATCH", 8), ("SAMPLES", 16), ("SAMPLE_STEPS", 2)):
        monkeypatch.setattr(proxies, name, value)
    monkeypatch.setattr(proxies, "SIZE", {"dim": 16, "depth": 1, "heads": 2})


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    def folder(name: str) -> Path:
        (tmp_path / name).mkdir()
        return tmp_path / name

    yield folder


def checkpoint(out: Path) -> dict[str, Any]:
    newest = max((out / "checkpoints").glob("step-*.pt"))
    return {**torch.load(newest, weights_only=True), "seconds": 0, "recipe": ""}


def assert_same(a: Any, b: Any, key: str = "") -> None:
    """Equal to the last bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_same(a[name], b[name], f"{key}.{name}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for i, pair in enumerate(zip(a, b)):
            assert_same(*pair, f"{key}.{i}")
    else:
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, key


def lines(out: Path, *, of: str = "") -> list[dict[str, Any]]:
    """The log without times; `of` proxies alone, or "loss" alone."""
    timed = ("seconds", "images_per_second", "loader_wait", "tflops")
    entries = [{k: v for k, v in entry.items() if k not in timed} for entry in read_log(out / "log.jsonl")]
    return [entry for entry in entries if any(key.startswith(of) for key in entry)]


RUNS = {
    "semanticist": ("tokenizer", []),
    "maetok": ("maetok", []),
    "smap": ("smap", ["model.tail_drop.enabled=true"]),
    "vq": ("titok", ["model.bottleneck.name=vq", "model.bottleneck.size=16", "model.bottleneck.revival=true"]),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_with_proxies_ends_as_one_without(
    name: str, tiny: Callable[..., str], fashion: None, small: None, made: Callable[[str], Path]
) -> None:
    kind, overrides = RUNS[name]
    with_proxies, without = made("with"), made("without")
    for out, every in ((with_proxies, 2), (without, 0)):
        recipe = load_recipe(tiny(kind), [*overrides, f"train.proxies_every={every}"])
        assert fit(recipe, build_task(recipe), out, quiet=True).finished
    assert_same(checkpoint(with_proxies), checkpoint(without))
    assert lines(with_proxies, of="loss") == lines(without, of="loss")
    measured = lines(with_proxies, of="proxy_")
    assert [entry["step"] for entry in measured] == [2, 4, 6]
    curve = (
        {"proxy_loss@0", "proxy_loss@1", "proxy_loss@2", "proxy_loss@4"} if name == "semanticist" else {"proxy_psnr@4"}
    )
    expected = {"proxy_probe", "proxy_mixture", "proxy_fd@fashion-mnist-cnn"} | curve
    if name == "vq":  # after a step all of its tokens may be one code, which no mixture fits
        expected -= {"proxy_mixture"}
    for entry in measured:
        assert expected <= entry.keys() and (name == "vq" or "proxy_missing" not in entry)
        assert 0 <= entry["proxy_probe"] <= 1 and entry["proxy_fd@fashion-mnist-cnn"] > 0
    assert not lines(without, of="proxy_")


def test_a_resumed_run_logs_the_same_proxies(
    tiny: Callable[..., str], fashion: None, small: None, made: Callable[[str], Path]
) -> None:
    recipe = load_recipe(tiny("maetok"), ["train.proxies_every=2", "train.save_every=1"])
    whole, broken = made("whole"), made("broken")
    fit(recipe, build_task(recipe), whole, quiet=True)
    fit(recipe, build_task(recipe), broken, seconds=0, quiet=True)  # stops after its first step
    assert len(lines(broken, of="proxy_")) == 0
    task = build_task(recipe)
    losses, calls = task.model.losses, [0]

    def interrupted(batch: Any, progress: float) -> Any:  # dies after the proxies of step 4, before its checkpoint
        calls[0] += 1
        if calls[0] == 4:
            raise OSError("gone")
        return losses(batch, progress)

    task.model.losses = interrupted  # type: ignore[assignment]
    with pytest.raises(OSError, match="gone"):
        fit(recipe, task, broken, quiet=True)
    fit(recipe, build_task(recipe), broken, quiet=True)
    assert lines(broken) == lines(whole)


class Noisy(nn.Module):
    """A model with all state that a careless measurement would change."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.frozen = nn.BatchNorm1d(3)

    def losses(self, batch: Any, progress: float) -> dict[str, Tensor]:
        self.frozen.eval()  # as a part that stays so through the training
        return {"loss": (self.net(self.frozen(batch[0])) + torch.randn(1)).square().mean()}


def test_a_proxy_receives_the_average_and_changes_nothing(made: Callable[[str], Path]) -> None:
    data = torch.randn(64, 3, generator=torch.Generator().manual_seed(5))
    received: list[tuple[Tensor, bool]] = []

    def careless(model: Any) -> dict[str, Any]:
        received.append((model.net[0].weight.detach().clone(), model.training or model.net.training))
        model.net(data)  # would move BatchNorm's averages in train mode
        return {"value": float(torch.randn(1000).sum())}

    def batch(micro_step: int, rank: int, world: int) -> tuple[Tensor]:
        return (data[8 * micro_step : 8 * micro_step + 8],)

    config = TrainConfig(steps=6, batch_size=8, lr=0.1, ema=0.9, log_every=1)
    recipe = Recipe(kind="classifier", model=CNNConfig(), train=config)
    models = []
    for out, measures in ((made("a"), [Measure(3, careless)]), (made("b"), [])):
        models.append(Noisy())
        fit(recipe, Task(models[-1], batch, measures=measures), out, quiet=True)
        assert [part.training for part in models[-1].modules()] == [False] * len(list(models[-1].modules()))
    root = made("c").parent
    assert_same(checkpoint(root / "a"), checkpoint(root / "b"))
    assert [entry["step"] for entry in lines(root / "a", of="value")] == [3, 6]
    assert not any(training for _, training in received)
    assert torch.equal(received[-1][0], models[0].net[0].weight), (
        "the run ends with the average, as the proxy received it"
    )


def tokens(kind: str, num: int = 400) -> tuple[Tensor, Tensor]:
    """(N, 2, 3) tokens and labels: Gaussian noise, or two distant clusters that match the labels."""
    source = torch.Generator().manual_seed(0)
    labels = torch.arange(num) % 2
    noise = torch.randn(num, 2, 3, generator=source)
    return noise + (10.0 * labels[:, None, None] if kind == "clusters" else 0), labels


def sample(kind: str) -> Any:
    """Inputs of the proxies, from synthetic tokens."""
    made, labels = tokens(kind)
    spec = TokenSpec(length=2, dim=3, deterministic=True)
    return SimpleNamespace(
        tokenizer=SimpleNamespace(spec=spec),
        device=torch.device("cpu"),
        train_tokens=made[:300],
        train_labels=labels[:300],
        test_tokens=made[300:],
        test_labels=labels[300:],
        train=SimpleNamespace(num_classes=2, __len__=lambda self: 300),
        recipe=load_recipe("fashion_mnist/maetok", ["data.name=folder", "data.root=x"]),
        vectors=lambda rows: rows.flatten(1).double(),
    )


def test_probe_and_mixture_distinguish_clusters_from_noise() -> None:
    noise, clusters = sample("noise"), sample("clusters")
    assert proxies.probe(clusters) == {"probe": 1.0}
    x, y = tokens("noise")
    x = x.flatten(1).double()
    assert proxies.probe(noise) == {"probe": linear_probe(x[:300], y[:300], x[300:], y[300:], seed=0)}
    assert proxies.mixture(clusters)["mixture"] > 1 > proxies.mixture(noise)["mixture"] > 0


def test_token_distance_of_known_sets() -> None:
    real = tokens("noise")[0].flatten(1).double()
    assert proxies._token_distance(real, real) == pytest.approx(0, abs=1e-8)
    # On six standardised components a shift of every one by half a deviation is at distance 6 / 4.
    centred = real - real.mean(0)
    _, scales, axes = torch.linalg.svd(centred, full_matrices=False)
    shift = 0.5 * (scales / len(real) ** 0.5) @ axes
    assert proxies._token_distance(real, real + shift) == pytest.approx(6 * 0.25, rel=1e-6)
    doubled = real.mean(0) + 2 * centred
    assert proxies._token_distance(real, doubled) == pytest.approx(6 * len(real) / (len(real) - 1), rel=1e-6)


class _Images:
    num_classes = 2

    def __len__(self) -> int:
        return 300


def test_the_tiny_generator_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    distances = []
    for steps in (0, 150):
        monkeypatch.setattr(proxies, "GENERATOR_STEPS", steps)
        made = sample("clusters")
        made.train = _Images()
        torch.manual_seed(steps)
        torch.randn(steps + 1)  # whatever random numbers were used before
        first = proxies.generator_distance(made)
        assert first == proxies.generator_distance(made), "seeds are fixed"
        distances.append(first["fd@tokens"])
    assert distances[1] < 0.5 * distances[0]


def test_collapsed_tokens_are_named_and_stop_nothing(tiny: Callable[..., str], fashion: None, small: None) -> None:
    recipe = load_recipe(tiny("maetok"), ["train.proxies_every=1"])
    model: Any = build_task(recipe).model.eval()
    assert "proxy_missing" not in Proxies(recipe)(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    found = Proxies(recipe)(model)
    assert found["proxy_psnr@4"] > 0
    named = " ".join(found["proxy_missing"])
    assert "mixture: " in named and "generator: " in named and "proxy_mixture" not in found


def test_only_tokenizers_have_proxies(tiny: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match=r"train\.proxies_every: only tokenizers"):
        load_recipe(tiny("classifier"), ["train.proxies_every=5"])

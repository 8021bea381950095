"""Generators that learn samples of a KL tokenizer's posterior: their moments, their noise, caches of both kinds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tok1d.cli import app as cli
from tok1d.config.load import load_recipe
from tok1d.config.recipe import Recipe
from tok1d.cost.forecast import forecast
from tok1d.data.tokens import TokenCache
from tok1d.errors import ConfigError, DataError, InputError
from tok1d.inference.cache import encode_batch
from tok1d.train.images import open_split
from tok1d.train.profile_task import _token_batches
from tok1d.train.rows import sampled
from tok1d.train.tasks import build_task
from tok1d.zoo import store
from tok1d.zoo.card import Card

Tiny = Callable[..., str]


@pytest.fixture(params=["smap", "titok", "maetok"])
def sit(request: Any, tiny: Tiny, tmp_path: Path, fashion: None) -> Callable[..., Recipe]:
    """sit(*overrides): a recipe of a SiT on a KL tokenizer with random weights and wide posteriors."""
    overrides = ["model.bottleneck={name: kl}"] if request.param == "maetok" else []
    torch.manual_seed(0)
    model: Any = store.build_model(load_recipe(tiny(request.param), overrides).model)
    nn.init.uniform_(model.bottleneck.proj.bias, -1, 1)
    store.save_model(model, tmp_path / "model", Card())
    path = tiny("sit", tokenizer=tmp_path / "model")
    return lambda *changes: load_recipe(path, [f"out={tmp_path / 'run'}", *changes])


def test_samples_have_the_posteriors_moments_and_their_own_noise() -> None:
    moments = torch.tensor([3.0, -1.0, 0.5, 2.0]).expand(4000, 1, 4)  # means, then standard deviations
    samples = sampled(moments, seed=0, step=0, rank=0)
    torch.testing.assert_close(samples.mean(0), torch.tensor([[3.0, -1.0]]), atol=0.1, rtol=0)
    torch.testing.assert_close(samples.std(0), torch.tensor([[0.5, 2.0]]), atol=0.1, rtol=0)
    assert torch.equal(samples, sampled(moments, seed=0, step=0, rank=0))
    for other in ({"seed": 1, "step": 0}, {"seed": 0, "step": 1}):
        correlation = torch.corrcoef(torch.stack([samples.flatten(), sampled(moments, **other, rank=0).flatten()]))[
            0, 1
        ]
        assert not torch.equal(samples, sampled(moments, **other, rank=0)) and correlation < 0.999


def test_processes_use_the_random_rows_of_one() -> None:
    moments = torch.rand(6, 3, 8, generator=torch.Generator().manual_seed(0))
    whole = sampled(moments, seed=4, step=9, rank=0)
    parts = [sampled(part, seed=4, step=9, rank=rank) for rank, part in enumerate(moments.chunk(3))]
    assert torch.equal(torch.cat(parts), whole)


def test_a_cache_and_images_give_the_same_samples(sit: Any, tmp_path: Path) -> None:
    """Every step samples the posterior anew: around the means that `encode` returns, with its standard deviations."""
    task = build_task(sit("sample_latents=true"))
    cache = TokenCache(tmp_path / "run" / "cache")
    assert cache.meta["moments"] and cache.dim == 8
    fresh = build_task(sit("sample_latents=true", "cache=none"))
    means = build_task(sit("cache=none"))
    deviations = []
    for step in range(40):
        tokens, labels = task.batch(step, 0, 1)
        torch.testing.assert_close(tokens, fresh.batch(step, 0, 1)[0], atol=1e-5, rtol=1e-5)
        centre, same = means.batch(step, 0, 1)
        assert torch.equal(labels, same)
        deviations.append(tokens - centre)
    images, tokenizer = open_split(sit(), "train"), store.load(sit().tokenizer)
    posterior = tokenizer.posterior(*images.batch(range(64)))
    spread = torch.cat(deviations).square().mean((0, 1)).sqrt()
    torch.testing.assert_close(spread, posterior.std.square().mean((0, 1)).sqrt(), rtol=0.1, atol=0)
    halves = torch.cat([task.batch(3, rank, 2)[0] for rank in (0, 1)])
    assert torch.equal(halves, task.batch(3, 0, 1)[0])


def test_means_are_read_of_a_cache_of_moments_and_samples_of_no_other(sit: Any, tmp_path: Path, capsys: Any) -> None:
    plain = "data.pad=0"  # as the command reads the images for a model whose card has no recipe
    words = ["encode", sit().tokenizer, "fashion_mnist", "--out", str(tmp_path / "moments")]
    assert cli.run([*words, "--moments", "--dry-run"]) == 0
    assert "64 rows of 4 x 8 float32 numbers" in capsys.readouterr().out
    assert cli.run([*words, "--moments"]) == 0
    cached = build_task(sit(plain, f"cache={tmp_path / 'moments'}")).batch(2, 0, 1)[0]
    torch.testing.assert_close(cached, build_task(sit(plain, "cache=none")).batch(2, 0, 1)[0], atol=1e-5, rtol=1e-5)
    build_task(sit(plain, f"cache={tmp_path / 'means'}"))
    with pytest.raises(
        DataError, match=r"contains only means, but sample_latents=true also needs .* encode with --moments"
    ):
        build_task(sit(plain, f"cache={tmp_path / 'means'}", "sample_latents=true"))


def test_the_statistics_are_those_of_samples(sit: Any) -> None:
    model: Any = build_task(sit("sample_latents=true", "model.statistics=channel")).model
    images, tokenizer = open_split(sit(), "train"), store.load(sit().tokenizer)
    posterior = tokenizer.posterior(*images.batch(range(64)))
    variance = posterior.mean.flatten(0, 1).var(0, unbiased=False) + posterior.std.square().mean((0, 1))
    torch.testing.assert_close(model.token_std.square(), variance, rtol=0.1, atol=0)


def test_the_dry_run_counts_both_numbers(sit: Any) -> None:
    plain, both = (forecast(sit("data.num_images=1000", *more)) for more in ((), ("sample_latents=true",)))
    assert (plain.cache_bytes, both.cache_bytes) == (1000 * (4 * 4 * 4 + 8), 1000 * (4 * 8 * 4 + 8))


def test_tokens_that_are_no_samples_are_refused(tiny: Tiny, tmp_path: Path, fashion: None, capsys: Any) -> None:
    model: Any = store.build_model(load_recipe(tiny("maetok")).model)
    store.save_model(model, tmp_path / "model", Card())
    path = tiny("sit", tokenizer=tmp_path / "model")
    with pytest.raises(ConfigError, match=r"^sample_latents: expected a tokenizer with a KL bottleneck"):
        build_task(load_recipe(path, ["sample_latents=true", f"out={tmp_path / 'run'}"]))
    with pytest.raises(ConfigError, match=r"^sample_latents: only generators read it"):
        load_recipe(tiny("maetok"), ["sample_latents=true"])
    with pytest.raises(InputError, match="posterior: expected a tokenizer with a KL bottleneck, got Plain"):
        encode_batch(model, torch.zeros(1, 1, 32, 32), None, 4, moments=True)
    out = tmp_path / "cache"
    assert cli.run(["encode", str(tmp_path / "model"), "fashion_mnist", "--out", str(out), "--moments"]) == 2
    assert "--moments: expected a tokenizer with a KL bottleneck" in capsys.readouterr().err and not out.exists()


def test_the_first_tokens_have_the_same_noise_whatever_the_cache_holds(
    tiny: Tiny, tmp_path: Path, fashion: None
) -> None:
    """Two of four tokens: from images, from a cache of two and from one of four."""
    torch.manual_seed(0)
    store.save_model(store.build_model(load_recipe(tiny("smap")).model), tmp_path / "model", Card())
    path = tiny("sit", tokenizer=tmp_path / "model", sample_latents="true")
    changes = ["num_tokens=2", "model.num_tokens=2", "data.pad=0", f"out={tmp_path / 'run'}"]
    out = str(tmp_path / "four")
    assert cli.run(["encode", str(tmp_path / "model"), "fashion_mnist", "--moments", "--out", out]) == 0
    caches = ["none", str(tmp_path / "two"), out]
    batches = [build_task(load_recipe(path, [*changes, f"cache={cache}"])).batch(5, 0, 1)[0] for cache in caches]
    for batch in batches[1:]:
        torch.testing.assert_close(batch, batches[0], atol=1e-5, rtol=1e-5)


def test_a_cache_begun_without_settings_is_finished_with_them(
    tiny: Tiny, tmp_path: Path, fashion: None, monkeypatch: Any
) -> None:
    """The run that finishes a cache adds the tokenizer's settings; the cache stays the same."""
    torch.manual_seed(0)
    store.save_model(store.build_model(load_recipe(tiny("smap")).model), tmp_path / "model", Card())
    words = ["encode", str(tmp_path / "model"), "fashion_mnist", "--out", str(tmp_path / "c"), "--rows-per-shard", "20"]
    with monkeypatch.context() as older:
        older.setattr("tok1d.inference.cache.encoder_settings", lambda tokenizer: {})
        assert cli.run([*words, "--shard", "0/2"]) == 0
    assert cli.run([*words, "--shard", "1/2"]) == 0
    settings = TokenCache(tmp_path / "c").about["tokenizer_settings"]
    assert settings["encoder.heads"] == 2 and "bottleneck.weight" not in settings


def test_the_measured_dry_run_takes_no_cache_of_means(tiny: Tiny, tmp_path: Path, fashion: None) -> None:
    torch.manual_seed(0)
    store.save_model(store.build_model(load_recipe(tiny("smap")).model), tmp_path / "model", Card())
    path, cache = tiny("sit", tokenizer=tmp_path / "model"), f"cache={tmp_path / 'cache'}"
    build_task(load_recipe(path, [cache, f"out={tmp_path / 'run'}"]))
    recipe = load_recipe(path, [cache, "sample_latents=true"])
    batches = _token_batches(recipe)
    assert "contains only means" in batches.source and not batches.real

"""As many leading tokens as an image needs: by search, by a head, and decoding of different numbers in one call."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tok1d.cli import app as cli
from tok1d.config.load import load_recipe
from tok1d.data.tokens import TokenCache
from tok1d.data.transforms import to_tensor
from tok1d.errors import InputError
from tok1d.inference.budget import at_mean, budget, smallest
from tok1d.inference.sampling import DECODER_NOISE, noise_of
from tok1d.losses.pixel import psnr_per_image
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.pretrained.quality import cosine_distance, load_quality
from tok1d.zoo.record import Record, read_records

Tiny = Callable[..., str]
RESIDUAL = "model.bottleneck={name: vq, size: 16, l2: false, levels: 2}"
TOKENIZERS = {
    "semanticist": ("tokenizer", []),
    "semanticist ddpm": ("tokenizer", ["model.objective=ddpm"]),
    "semanticist vq": ("tokenizer", ["model.quantiser={name: vq, size: 16}"]),
    "smap": ("smap", []),
    "smap vq": ("smap", ["model.bottleneck={name: vq, size: 16}"]),
    "smap residual vq": ("smap", ["model.num_tokens=2", "evaluate.keep=[1, 4]", RESIDUAL]),
}


@pytest.fixture
def tokenizer(tiny: Tiny) -> Callable[[str], Any]:
    def make(name: str) -> Any:
        kind, overrides = TOKENIZERS.get(name, (name, []))
        torch.manual_seed(0)
        model = store.build_model(load_recipe(tiny(kind), overrides).model).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1 if "ddpm" in name else 0.3)  # ancestral sampling amplifies rounding
        return model

    return make


def pictures(model: Any, num: int = 3) -> Tensor:
    return torch.rand(num, 1, *[model.config.image_size] * 2, generator=torch.Generator().manual_seed(1))


def test_the_smallest_number_is_exact_where_quality_is_not_monotone() -> None:
    found = torch.tensor([[10.0, 21.0, 15.0, 30.0], [1.0, 2.0, 3.0, 4.0], [25.0, 3.0, 2.0, 1.0]])
    assert smallest(found, 20).tolist() == [2, 4, 1]
    assert smallest(found, 21).tolist() == [2, 4, 1] and smallest(found, 22).tolist() == [4, 4, 1]
    assert smallest(found, 0).tolist() == [1, 1, 1] and smallest(-found, 0).tolist() == [1, 1, 1]
    assert smallest(found * math.inf, math.inf).tolist() == [4, 4, 4]


def test_a_curve_at_a_mean_number_of_tokens() -> None:
    curve = torch.tensor([1.0, 3.0, 4.0])
    assert [at_mean(curve, k) for k in (1, 1.5, 2, 2.25, 3)] == [1, 2, 3, 3.25, 4]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_search_finds_what_single_decodings_find(tokenizer: Any, name: str) -> None:
    model = tokenizer(name)
    images, cond = pictures(model), torch.tensor([1, 5, 9]) if model.spec.needs_label else None
    tokens, length = model.encode(images, cond), model.spec.length
    noise = lambda: [noise_of(2, DECODER_NOISE, i) for i in range(3)]  # noqa: E731
    with torch.no_grad():
        single = [model.decode(tokens, cond, keep=k, generator=noise()) for k in range(1, length + 1)]
    qualities = torch.stack([psnr_per_image(each, images) for each in single], 1)
    for wanted in (0.0, *qualities.flatten().sort().values[1::4].tolist(), math.inf):
        wanted = max(wanted - 1e-3, 0.0)
        expected = [next((k for k in range(length) if row[k] >= wanted), length - 1) + 1 for row in qualities]
        expected = [length] * 3 if wanted == math.inf else [1] * 3 if wanted == 0 else expected
        found = model.budget(images, cond, quality=wanted, seed=2)
        assert found.keep.tolist() == expected
        for i, k in enumerate(expected):
            torch.testing.assert_close(found.images[i], single[k - 1][i], atol=1e-3, rtol=0)
            torch.testing.assert_close(found.quality[i], qualities[i, k - 1], atol=1e-3, rtol=0)
        # Different numbers in one call.
        with torch.no_grad():
            ragged = model.decode(tokens, cond, keep=found.keep, generator=noise())
        torch.testing.assert_close(ragged, found.images, atol=1e-3, rtol=0)
    small = budget(model, images, cond, quality=wanted, seed=2, rows=1)
    assert torch.equal(small.keep, found.keep)


def test_a_head_chooses_by_its_predictions(tokenizer: Any) -> None:
    class Head(nn.Module):
        config = type("Config", (), {"metric": "psnr"})

        def qualities(self, tokens: Tensor, last: Tensor) -> Tensor:
            measured.append(last)
            return torch.tensor([[5.0, 20, 21, 22], [30, 1, 1, 1], [1, 2, 3, 4]])

    model, measured = tokenizer("smap"), []
    images, cond = pictures(model), torch.tensor([1, 5, 9])
    with pytest.raises(InputError, match="has no head that predicts qualities; tok1d train fashion_mnist/budget"):
        model.budget(images, cond, quality=20, by="head")
    model.budget_heads = (Head(),)
    found = model.budget(images, cond, quality=20, by="head")
    assert found.keep.tolist() == [2, 1, 4] and found.quality.tolist() == [20, 30, 4] and found.mean == 7 / 3
    whole = psnr_per_image(model.decode(found.tokens, cond), images)
    torch.testing.assert_close(measured, [whole], atol=1e-3, rtol=0)
    single = [model.decode(found.tokens[i : i + 1], cond[i : i + 1], keep=k) for i, k in enumerate([2, 1, 4])]
    torch.testing.assert_close(found.images, torch.cat(single), atol=1e-3, rtol=0)
    with pytest.raises(InputError, match="the head of this tokenizer predicts psnr, got lpips"):
        model.budget(images, cond, quality=20, by="head", metric="lpips")


def test_qualities_are_of_distances(tokenizer: Any) -> None:
    images = pictures(tokenizer("tokenizer"))
    other = images.flip(0)
    torch.testing.assert_close(load_quality("psnr")(other, images), psnr_per_image(other, images))
    assert load_quality("psnr")(images, images).tolist() == [math.inf] * 3
    for name in ("fashion-mnist-cnn", "model:fashion-mnist-cnn"):
        found = load_quality(name)(other, images)
        assert (found > 0).all() and (load_quality(name)(images, images) > 40).all()
    far = cosine_distance(lambda x: x)(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 2.0]]]))
    assert far.tolist() == [0.5]
    with pytest.raises(InputError, match=r"quality_metric: expected psnr, lpips, .* got 'mse'"):
        load_quality("mse")


@pytest.mark.parametrize("name", ["maetok", "titok"])
def test_unordered_tokens_are_refused(tokenizer: Any, name: str) -> None:
    model = tokenizer(name)
    with pytest.raises(InputError, match="quality: these tokens have no order, all of them are needed"):
        model.budget(pictures(model), quality=10)
    with pytest.raises(InputError, match="expected at least 0 dB, got -1"):
        tokenizer("smap").budget(pictures(tokenizer("smap")), quality=-1)


def test_the_command_writes_the_budget(tokenizer: Any, tmp_path: Path, capsys: Any) -> None:
    store.save_model(tokenizer("semanticist"), tmp_path / "model", Card())
    store.save_model(tokenizer("maetok"), tmp_path / "unordered", Card())
    Image.fromarray(np.arange(784, dtype=np.uint8).reshape(28, 28)).save(tmp_path / "photo.png")
    command = ["reconstruct", str(tmp_path / "model"), str(tmp_path / "photo.png"), "--device", "cpu", "--overwrite"]
    command += ["--out", str(tmp_path / "out")]
    for quality, count in (("0", 1), ("inf", 4)):
        assert cli.run([*command, "--quality", quality]) == 0
        out = capsys.readouterr().out
        assert f"quality {quality} dB: {count}.00 tokens on average ({count} to {count}), psnr" in out
        names = {path.name for path in (tmp_path / "out").iterdir()}
        assert names == {"overview.png", "image000_original.png", "image000_quality.png"}
    assert cli.run([*command, "--quality", "0", "--keep", "1"]) == 0
    both = [np.asarray(Image.open(tmp_path / "out" / f"image000_{each}.png")) for each in ("quality", "keep001")]
    assert np.array_equal(*both)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photo.png").rename(tmp_path / "photos" / "photo.png")
    encode = ["encode", str(tmp_path / "model"), str(tmp_path / "photos"), "--split", "all", "--device", "cpu"]
    for quality, count in (("0", 1), ("inf", 4)):
        assert cli.run([*encode, "--out", str(tmp_path / f"cache-{quality}"), "--quality", quality]) == 0
        assert TokenCache(tmp_path / f"cache-{quality}").lengths([0]).tolist() == [count]
    command[2] = str(tmp_path / "photos" / "photo.png")
    unordered = [*command[:1], str(tmp_path / "unordered"), *command[2:-1], str(tmp_path / "none")]
    for wrong in (
        [*command, "--quality", "-1"],
        [*command, "--quality", "nan"],
        [*command, "--quality-by", "head"],
        [*command, "--quality", "3", "--quality-by", "head"],
        [*command, "--quality", "3", "--quality-metric", "mse"],
        [*unordered, "--quality", "3"],
    ):
        assert cli.run(wrong) == 2, wrong
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "quality" in err, err
    assert not (tmp_path / "none").exists()


def test_evaluation_measures_budgets(tokenizer: Any, tmp_path: Path, capsys: Any) -> None:
    """One token, all tokens and the search of the model are the rows of the evaluation; wrong options are one line."""
    model = tokenizer("semanticist")
    store.save_model(model, tmp_path / "model", Card())
    store.save_model(tokenizer("maetok"), tmp_path / "unordered", Card())
    (tmp_path / "photos").mkdir()
    for i, image in enumerate(pictures(model, 5)):
        Image.fromarray((image[0] * 255).byte().numpy()).save(tmp_path / "photos" / f"{i}.png")
    command = ["evaluate", "reconstruction", str(tmp_path / "model"), str(tmp_path / "photos"), "--split", "all"]
    command += [
        "--metrics",
        "psnr,mse",
        "--device",
        "cpu",
        "--overwrite",
        "--quiet",
        "--out",
        str(tmp_path / "out.json"),
    ]

    def records(*options: str) -> dict[tuple[str, str], Record]:
        assert cli.run([*command, *options]) == 0, capsys.readouterr().err
        found = [each for each in read_records(tmp_path / "out.json") if each.keep_text]
        return {(each.name, each.keep_text): each for each in found}

    fixed = records("--keep", "1,2,3,4")
    for quality, keep in (("0", 1), ("inf", 4)):
        found = records("--quality", quality, "--keep", "1,4", "--batch-size", "2")
        row = found["psnr", f"{keep} for {quality} dB"]
        assert row.keep is None and row.value == found["psnr", str(keep)].value
        assert row.value == pytest.approx(fixed["psnr", str(keep)].value, rel=1e-5)
    wanted = fixed["psnr", "2"].value or 0.0
    (psnr, mse) = records("--quality", str(wanted), "--batch-size", "2").values()
    files = sorted((tmp_path / "photos").iterdir())
    images = torch.stack([to_tensor(Image.open(file)) for file in files])
    searched = model.budget(images, quality=wanted)
    assert psnr.budget == {"tokens": searched.mean, "quality": wanted, "metric": "psnr", "by": "search"}
    assert psnr.value == pytest.approx(float(searched.quality.mean()), rel=1e-5) and mse.budget == psnr.budget
    assert "evaluations" in (psnr.decoding or {}) and psnr.decoding == fixed["psnr", "1"].decoding
    capsys.readouterr()
    for wrong in (["--quality-by", "head"], ["--quality", "3", "--quality-by", "head"], ["--quality", "nan"]):
        assert cli.run([*command, *wrong]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "quality" in err, err
    command[2] = str(tmp_path / "unordered")
    assert cli.run([*command, "--quality", "3"]) == 2
    assert "--quality: these tokens have no order" in capsys.readouterr().err


def test_a_grid_has_a_row_for_each_quality(tokenizer: Any, tmp_path: Path, capsys: Any) -> None:
    store.save_model(tokenizer("semanticist"), tmp_path / "model", Card())
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.fromarray(np.full((28, 28), 80 * i, np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    command = ["evaluate", "grid", str(tmp_path / "model"), str(tmp_path / "photos")]
    command += ["--quality", "0,inf", "--metrics", "psnr", "--split", "all", "--device", "cpu"]
    assert cli.run([*command, "--out", str(tmp_path / "grid")]) == 0, capsys.readouterr().err
    lines = (tmp_path / "grid" / "grid.csv").read_text().splitlines()
    assert [line.split(",")[2:4] for line in lines] == [
        ["quality", "keep"],
        ["0.0", "1 for 0 dB"],
        ["inf", "4 for inf dB"],
    ]

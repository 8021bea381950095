"""Forecasts: counts in closed form, equal to those on real tensors, and nothing read or written."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from tok1d.cli.app import run as run_cli
from tok1d.config.load import load_recipe
from tok1d.cost.flops import step_flops_or_none
from tok1d.cost.forecast import DEVICES, forecast, meta_batch, table
from tok1d.cost.measure import AUTOENCODERS, StepCost, autoencoder_cost, measure, use_stand_ins
from tok1d.errors import ConfigError
from tok1d.nn.attention import Attention
from tok1d.zoo import store

IN, HIDDEN, OUT, LENGTH = 8, 24, 4, 10


class Toy(nn.Module):
    """One layer with a sum as its loss; the sum stores no activations."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def losses(self, batch: tuple[Tensor, Tensor], progress: float) -> dict[str, Tensor]:
        return {"loss": self.body(batch[0]).sum(), "sum": batch[0].sum()}


def toy(body: Callable[[], nn.Module], shape: tuple[int, ...], *, half: bool = False) -> StepCost:
    with torch.device("meta"):
        model = Toy(body())
    return measure(model, lambda num: (torch.empty(num, *shape, device="meta"), torch.empty(0)), half=half)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(IN, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, OUT))


def test_a_small_network_in_closed_form() -> None:
    measured = toy(mlp, (IN,))
    # Forward two products; backward two for the second layer and one for the first, whose input needs no gradient.
    assert measured.flops_per_image == 2 * (2 * IN * HIDDEN + 3 * HIDDEN * OUT)
    # Kept: the input, what enters SiLU, what leaves it.
    assert measured.bytes_per_image == 4 * (IN + 2 * HIDDEN)
    assert measured.bytes_of_any_batch == 0
    assert measured.activations(7) == 7 * measured.bytes_per_image


def test_half_precision_halves_activations_and_keeps_a_copy_of_weights() -> None:
    measured = toy(mlp, (IN,), half=True)
    assert measured.bytes_per_image == 2 * (IN + 2 * HIDDEN)
    assert measured.bytes_of_any_batch == 2 * HIDDEN * OUT, "the first layer's is not needed for a gradient"
    assert measured.flops_per_image == toy(mlp, (IN,)).flops_per_image


def test_guidance_free_training_has_a_second_pass_without_gradients_in_any_precision() -> None:
    overrides = ["model.depth=1", "model.dim=32", "model.heads=2", "model.class_dropout=0.1"]
    flops = {}
    for free, half in product((False, True), (False, True)):
        recipe = load_recipe("fashion_mnist/sit", [*overrides, f"model.guidance_free={str(free).lower()}"])
        with torch.device("meta"):
            model = store.build_model(recipe.model)
        flops[free, half] = measure(model, partial(meta_batch, recipe), half=half).flops_per_image
    assert flops[True, True] == flops[True, False] > 1.3 * flops[False, False]


@pytest.mark.parametrize("half", [False, True])
def test_attention_keeps_no_matrix_of_scores(half: bool) -> None:
    dim, heads, size = 16, 2, 2 if half else 4
    measured = toy(lambda: Attention(dim, heads), (LENGTH, dim), half=half)
    kept = LENGTH * dim * size * (1 + 3 + 1)  # input; q, k, v in one; result
    copy = LENGTH * dim * size  # the result with its heads side by side
    normalisers = 4 * heads * LENGTH
    assert measured.bytes_per_image in (kept + normalisers, kept + copy + normalisers)
    products = 2 * LENGTH * (3 * dim * dim * 2 + 3 * dim * dim) + 3 * 2 * (2 * LENGTH * LENGTH * dim)
    assert measured.flops_per_image == products


def test_dropout_keeps_a_mask_of_one_byte() -> None:
    measured = toy(lambda: nn.Sequential(nn.Linear(IN, HIDDEN), nn.Dropout(0.5)), (IN,))
    assert measured.bytes_per_image == 4 * IN + HIDDEN


def real_bytes(model: Any, batch: tuple[Tensor, Tensor]) -> int:
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        terms = model.losses(batch, 0.5)
        sum(value for name, value in terms.items() if name.startswith("loss"))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("kind", ["tokenizer", "generator", "classifier"])
def test_a_meta_model_keeps_what_a_real_one_keeps(tiny: Callable[..., str], kind: str) -> None:
    keys = {"tokenizer": "nowhere", "cache": "none"} if kind == "generator" else {}
    recipe = load_recipe(tiny(kind, **keys), ["model.dropout=0.0"] if kind == "generator" else [])
    model = store.build_model(recipe.model).train()
    inputs, labels = meta_batch(recipe, 8)
    real = real_bytes(model, (torch.rand(inputs.shape), torch.zeros_like(labels, device="cpu")))
    assert forecast(recipe).measured.activations(8) == pytest.approx(real, rel=0.02)


def test_state_and_steps_add_up(tiny: Callable[..., str]) -> None:
    path = tiny("tokenizer", data="{num_images: 96, limit: 64}")
    result = forecast(load_recipe(path, ["train.accumulate=2"]))
    model = store.build_model(load_recipe(path).model)
    count = sum(p.numel() for p in model.parameters())
    assert result.trainable == count and result.total == count + 4 * 16, "a table of 2 x 2 positions of width 16"
    assert result.tables == {"decoder": 4 * 16}
    assert result.state_bytes == 20 * count + 4 * (4 * 16)
    assert forecast(load_recipe(path, ["train.ema=0"])).state_bytes == 16 * count + 4 * (4 * 16)
    assert result.memory() - result.memory(DEVICES) == 7 * result.measured.bytes_per_image
    shared = forecast(load_recipe(path, ["train.accumulate=2", "train.shard=optimizer"]))
    assert shared.memory() == result.memory()
    assert shared.memory(DEVICES) == result.memory(DEVICES) - 8 * count * 7 // 8
    assert (result.images_per_step, result.num_images) == (16, 64)
    assert result.run_flops == 6 * 16 * result.measured.flops_per_image


@pytest.mark.parametrize(("views", "rows"), [("center", 60_000), ("tencrop", 1_200_000)])
@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_token_cache_on_disk(tiny: Callable[..., str], views: str, rows: int, dtype: str, size: int) -> None:
    path = tiny("generator", tokenizer="nowhere", cache_views=views, cache_dtype=dtype)
    result = forecast(load_recipe(path))
    assert (result.cache_rows, result.cache_bytes) == (rows, rows * (3 * 4 * size + 8))
    assert forecast(load_recipe(tiny("generator", tokenizer="nowhere"), ["cache=none"])).cache_bytes is None


@pytest.mark.parametrize(("geometry", "count"), [((16, 16), 66_456_019), ((4, 8), 83_653_863)])
def test_known_autoencoders_have_their_published_size(geometry: tuple[int, int], count: int) -> None:
    pytest.importorskip("diffusers")
    assert geometry in AUTOENCODERS
    cost = autoencoder_cost(*geometry, 32)
    larger = autoencoder_cost(*geometry, 64)
    assert cost is not None and larger is not None
    assert cost[0] == larger[0] == count
    assert larger[1] > 4 * cost[1], "convolutions by the area, attention by its square"


def test_frozen_networks_need_no_weights(tiny: Callable[..., str]) -> None:
    path = tiny("tokenizer")
    overrides = [
        "model.latents={space: autoencoder, path: nowhere, channels: 3, factor: 2}",
        "model.alignment={teacher: vit_tiny_patch14_nowhere, image_size: 28}",
        "model.decoder.align_depth=1",
        "model.decoder.patch=7",
    ]
    result = forecast(load_recipe(path, overrides))
    assert result.frozen == {"autoencoder": None, "teacher": None}
    assert result.parameters["projector"] == 16 * 2048 + 2048 + 2048**2 + 2048 + 2048 * 768 + 768
    assert result.measured.flops_per_image > forecast(load_recipe(path)).measured.flops_per_image


def test_stand_ins_have_the_shapes_of_what_they_stand_for(tiny: Callable[..., str]) -> None:
    overrides = [
        "model.latents={space: autoencoder, path: nowhere, channels: 3, factor: 2}",
        "model.alignment={teacher: vit_tiny_patch14_nowhere, image_size: 56}",
        "model.decoder.align_depth=1",
        "model.decoder.patch=7",
    ]
    with torch.device("meta"):
        model: Any = store.build_model(load_recipe(tiny("tokenizer"), overrides).model)
        images = torch.empty(5, 1, 28, 28)
    use_stand_ins(model)
    assert model.latent_space.encode(images).shape == (5, 3, 14, 14)
    assert model.teacher_features(images).shape == (5, 16, 768)


def printed(result: Any) -> str:
    console = Console(width=110)
    with console.capture() as capture:
        console.print(table(result))
    return capture.get()


def test_the_table_marks_unknown_values(tiny: Callable[..., str]) -> None:
    result = forecast(load_recipe(tiny("tokenizer")))
    assert "60,000 images" in printed(result)
    assert "epochs unknown, set data.num_images" in printed(replace(result, num_images=None))
    assert "not counted" in printed(replace(result, frozen={"teacher": None}))


def test_dry_run_reads_and_writes_nothing(
    tiny: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tiny("generator", tokenizer="nowhere/model", data="{name: folder, root: nowhere}")
    assert run_cli(["train", path, "num_tokens=2", "model.num_tokens=2", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "trunk" in text and "head" in text and "set data.num_images" in text
    assert not list(tmp_path.iterdir())
    assert run_cli(["train", path, "model.dept=3", "--dry-run"]) == 2
    assert "model.depth" in capsys.readouterr().err


class OwnConfig:
    """A configuration of a model that is not part of tok1d."""

    name, image_size, channels, num_classes = "own", 8, 1, 2


class Own(nn.Module):
    """A user's model without `use_stand_ins`. With `values` its loss reads values, which meta tensors lack."""

    def __init__(self, *, values: bool) -> None:
        super().__init__()
        self.config, self.values = OwnConfig(), values
        self.layer = nn.Linear(64, 2)

    def losses(self, batch: tuple[Tensor, Tensor], progress: float) -> dict[str, Tensor]:
        loss = self.layer(batch[0].flatten(1)).square().mean()
        return {"loss": loss if not self.values or loss.item() >= 0 else -loss}


def own(tiny: Callable[..., str], monkeypatch: pytest.MonkeyPatch, *, values: bool) -> Any:
    recipe = load_recipe(tiny("classifier"))
    recipe.model = OwnConfig()
    monkeypatch.setattr(store, "build_model", lambda config: Own(values=values))
    return recipe


def test_a_model_that_declares_nothing_is_forecast(tiny: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = own(tiny, monkeypatch, values=False)
    result = forecast(recipe)
    assert result.trainable == 64 * 2 + 2 and result.measured.flops_per_image == 2 * (2 * 64 * 2)
    flops = step_flops_or_none(recipe)
    assert flops is not None and flops.before == 8 * result.measured.flops_per_image


def test_an_unknown_cost_is_one_line(tiny: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = own(tiny, monkeypatch, values=True)
    with pytest.raises(ConfigError, match=r"^model: the cost of own is unknown, .* use_stand_ins") as error:
        forecast(recipe)
    assert "\n" not in str(error.value)
    assert step_flops_or_none(recipe) is None

"""Published SiT, DiT and LightningDiT weights <-> ours: round trips, reversed time, and files that do not fit."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tok1d.diffusion.guidance import Guidance
from tok1d.diffusion.solver import heun, time_grid
from tok1d.errors import WeightsError
from tok1d.generators.lightningdit import LightningDiT, LightningDiTConfig
from tok1d.generators.sit import DiT, DiTConfig, SiT, SiTConfig
from tok1d.nn.position import sincos_2d, sincos_interleaved
from tok1d.zoo.adapters.sit import (
    KEYS,
    STATISTICS,
    _swiglu_ratio,
    convert_dit,
    convert_lightningdit,
    convert_sit,
    from_published,
    reverse_time,
    to_published,
)
from tok1d.zoo.compat.guidance import first_channels, heun_held

State = dict[str, Tensor]
SIZES: dict[str, Any] = {"num_tokens": 4, "token_dim": 3, "num_classes": 6, "dim": 12, "depth": 2, "heads": 3}


def randomised(model: Any) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def models() -> dict[Any, Any]:
    return {
        "sit": randomised(SiT(SiTConfig(**SIZES, qk_norm=True, mlp_ratio=3.0))),
        "dit": randomised(DiT(DiTConfig(**SIZES))),
        "lightningdit": randomised(
            LightningDiT(LightningDiTConfig(**SIZES, qk_norm=True, shift=False, rotary="2d", positions="2d"))
        ),
    }


def published(kind: Any, model: Any) -> State:
    """A whole file, with the fixed tables the release stores."""
    table = sincos_2d(12, 2, 2) if kind == "lightningdit" else sincos_interleaved(12, 4)
    state = {**to_published(model.state_dict(), kind), "pos_embed": table[None]}
    if kind == "lightningdit":
        state |= {
            f"feat_rope.freqs_{name}": getattr(model.net, name).repeat_interleave(2, 1) for name in ("cos", "sin")
        }
    return {name: value.contiguous() for name, value in state.items()}


@pytest.mark.parametrize("kind", ["sit", "dit", "lightningdit"])
def test_names_and_values_survive_a_round_trip(kind: Any) -> None:
    model = models()[kind]
    ours = {name: value for name, value in model.state_dict().items() if name not in STATISTICS}
    there = to_published(ours, kind)
    back, ignored = from_published(there, kind)
    assert not ignored and back.keys() == ours.keys()
    again = to_published(back, kind)
    assert again.keys() == there.keys()
    for left, right in ((back, ours), (again, there)):
        for name, value in left.items():
            if kind == "sit" and name.endswith(("time_embed.fc1.weight", "t_embedder.mlp.0.weight")):
                torch.testing.assert_close(value, right[name], atol=1e-6, rtol=0)  # turned twice in float32
            else:
                assert torch.equal(value, right[name]), name


def test_every_name_of_the_key_map_means_one_thing() -> None:
    for column in (0, 1):
        patterns = [pair[column] for pair in KEYS.pairs]
        assert len(set(patterns)) == len(patterns)


def test_reversed_time_is_the_negative_velocity_at_the_other_end() -> None:
    model = models()["sit"]
    other = SiT(model.config).eval()
    other.load_state_dict(reverse_time(model.state_dict()))
    x, t, labels = torch.randn(5, 4, 3), torch.linspace(0, 1, 5), torch.tensor([0, 1, 5, 6, 2])
    torch.testing.assert_close(other.net(x, t, labels), -model.net(x, 1 - t, labels), atol=1e-5, rtol=1e-5)


def same_model(found: Any, model: Any) -> bool:
    left, right = found.state_dict(), model.state_dict()
    return left.keys() == right.keys() and all(torch.allclose(left[name], right[name], atol=1e-6) for name in left)


def test_a_published_folder_gives_its_shape_and_the_tokenizer_its_statistics(tmp_path: Path) -> None:
    model = models()["sit"]
    save_file(published("sit", model), tmp_path / "model.safetensors")
    options = {"num_heads": 3, "class_dropout_prob": 0.1, "patch_size": 2, "path_type": "edm"}
    (tmp_path / "config.json").write_text(json.dumps(options))
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "config.json").write_text(json.dumps({"vq_mean": 0.25, "vq_std": 4.0}))
    found = convert_sit(tmp_path, tokenizer=str(tmp_path / "tokenizer"))
    assert found.config == model.config
    model.token_mean.fill_(0.25)
    model.token_std.fill_(4.0)
    assert same_model(found, model) and not found.training
    sampled = found.sample(torch.tensor([1]), steps=2)
    torch.testing.assert_close(sampled, model.sample(torch.tensor([1]), steps=2), atol=1e-4, rtol=1e-4)


def test_a_trainers_file_gives_its_averaged_weights(tmp_path: Path) -> None:
    averaged = models()["dit"]
    state = {f"module._orig_mod.{name}": value for name, value in published("dit", averaged).items()}
    raw = {name: value + 1 for name, value in state.items()}
    content = {"model": raw, "ema": state, "opt": {}, "args": argparse.Namespace(lr=1e-4), "steps": 7}
    torch.save(content, tmp_path / "0400000.pt")
    found = convert_dit(tmp_path / "0400000.pt", heads=3, mean=0.0, std=1.0)
    assert found.config == averaged.config and same_model(found, averaged)


@pytest.mark.parametrize("ratio", [1, 2.5, 8 / 3, 4])
def test_every_width_has_a_ratio_of_its_swiglu(ratio: float) -> None:
    for dim in range(4, 2200):
        hidden = int(2 / 3 * int(dim * ratio))
        assert int(2 / 3 * int(dim * _swiglu_ratio(dim, hidden))) == hidden, (dim, hidden)


def test_lightningdit_finds_its_positions_and_statistics(tmp_path: Path) -> None:
    model = models()["lightningdit"]
    save_file(published("lightningdit", model), tmp_path / "model.safetensors")
    statistics = {"mean": torch.arange(3.0).view(1, 3, 1, 1), "std": torch.full((1, 3, 1, 1), 2.0)}
    torch.save(statistics, tmp_path / "stats.pt")
    found = convert_lightningdit(tmp_path / "model.safetensors", heads=3, statistics=str(tmp_path / "stats.pt"))
    assert found.config == replace(model.config, time_shift=1 / 0.3)  # its timestep_shift
    model.token_mean.copy_(torch.arange(3.0))
    model.token_std.fill_(2.0)
    assert same_model(found, model)


def test_what_is_not_part_of_the_generator_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {**published("sit", models()["sit"]), "projectors.0.weight": torch.zeros(1)}
    save_file(state, tmp_path / "sit.safetensors")
    convert_sit(tmp_path / "sit.safetensors", heads=3)
    reported = capsys.readouterr().err
    assert "1 (projectors.0.weight)" in reported and "using 0 and 1" in reported


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def save(state: State) -> Path:
        save_file(state, tmp_path / "file.safetensors")
        return tmp_path / "file.safetensors"

    sit, dit = (published(kind, models()[kind]) for kind in ("sit", "dit"))
    with pytest.raises(WeightsError, match="attention heads of width 12: give heads="):
        convert_sit(save(sit))
    with pytest.raises(WeightsError, match="convert it as a DiT"):
        convert_sit(save(dit), heads=3)
    with pytest.raises(WeightsError, match="is it a SiT"):
        convert_dit(save(sit), heads=3)
    with pytest.raises(WeightsError, match=r"pos_embed .* is neither"):
        convert_sit(save({**sit, "pos_embed": sit["pos_embed"] + 0.1}), heads=3)
    with pytest.raises(WeightsError, match=r"blocks\.1\.attn\.proj\.bias"):
        convert_sit(save({k: v for k, v in sit.items() if k != "blocks.1.attn.proj.bias"}), heads=3, mean=0, std=1)
    with pytest.raises(WeightsError, match=r"expected patches of 1, got \(2, 2\)"):
        convert_sit(save({**sit, "x_embedder.proj.weight": torch.zeros(12, 3, 2, 2)}), heads=3)
    with pytest.raises(WeightsError, match=r"expected a config\.json with vq_mean"):
        convert_sit(save(sit), heads=3, tokenizer=str(tmp_path))


def test_held_heun_is_heun_where_guidance_does_not_change() -> None:
    def field(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(3 * t) - x

    x, times = torch.randn(2, 3), time_grid(5)
    assert torch.equal(heun_held(lambda t: field, x, times), heun(field, x, times))
    asked: list[float] = []
    heun_held(lambda t: asked.append(t) or field, x, times)  # type: ignore[func-returns-value]
    assert asked == pytest.approx([0, 0.2, 0.4, 0.6, 0.8]), "decided once a step, at its start"


def test_first_channel_guidance_leaves_the_others_conditional() -> None:
    model = models()["sit"]
    labels, x, t = torch.tensor([0, 1]), torch.randn(2, 4, 3), torch.tensor([0.5])
    plain, guided = model.field(labels, Guidance()), model.field(labels, Guidance(3.0))
    mixed = first_channels(guided, plain, channels=2)(x, t)
    assert torch.equal(mixed[..., 2:], plain(x, t)[..., 2:]) and torch.equal(mixed[..., :2], guided(x, t)[..., :2])

"""Published MAETok and SoftVQ tokenizers <-> ours: round trips, inferred configurations, what is left out, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tok1d.config.registry import build_model_config
from tok1d.errors import WeightsError
from tok1d.tokenizers.maetok import MAETok
from tok1d.zoo import store
from tok1d.zoo.adapters.maetok import KEYS, convert_tokenizer, from_published, to_published
from tok1d.zoo.convert import convert

SMALL = {"patch": 16, "dim": 16, "depth": 2, "heads": 2, "mlp_ratio": 2.0}
ABSOLUTE = {"rotary": "none", "absolute": True}
RELEASED = {"distribution": "truncnorm", "per": "batch"}


def tokenizer(**keys: Any) -> MAETok:
    mapping: dict[str, Any] = {"name": "maetok", "image_size": 32, "num_tokens": 4, "token_dim": 3, "mask": RELEASED}
    mapping |= keys
    mapping["encoder"] = {**SMALL, **keys.get("encoder", {})}
    mapping["decoder"] = {**SMALL, "absolute": False, **keys.get("decoder", {})}
    torch.manual_seed(0)
    return MAETok(build_model_config(mapping)).eval()


MODELS: dict[str, dict[str, Any]] = {
    "maetok": {},
    "registers": {"encoder": {"registers": 4}, "decoder": {"registers": 2, "class_token": False}},
    "no_mask_conv": {"mask": {"low": 0, "high": 0}, "head": "conv"},
    "softvq": {
        "bottleneck": {"name": "softvq", "size": 5, "num_codebooks": 2, "tau": 0.2},
        "encoder": ABSOLUTE,
        "decoder": ABSOLUTE,
    },
    "vq": {"bottleneck": {"name": "vq", "size": 5}, "decoder": ABSOLUTE},
    "kl": {"bottleneck": {"name": "kl", "weight": 0.01}},
}


def publish(model: MAETok, folder: Path, **options: Any) -> dict[str, Tensor]:
    """A folder as the hub has it, with what the release stores besides the weights that are ours."""
    state = to_published(model.state_dict())
    state["decoder.model.patch_embed.proj.weight"] = torch.zeros(16, 3, 16, 16)
    if "decoder.freqs" in state:
        state["decoder.model.pos_embed"] = torch.zeros(1, 5, 16)
        state["decoder.freqs_t_x"] = torch.arange(4.0)
    save_file(state, folder / "model.safetensors")
    bottleneck = model.config.bottleneck
    flat = {"tau": getattr(bottleneck, "tau", 0.1), "kl_loss_weight": getattr(bottleneck, "weight", 1e-6)}
    flat["entropy_loss_ratio"] = getattr(bottleneck, "entropy", 0.0)
    (folder / "config.json").write_text(json.dumps({**flat, "enc_token_drop": 0.4, **options}))
    return state


@pytest.mark.parametrize("kind", MODELS)
def test_conversion_finds_the_model_in_the_file(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture) -> None:
    model = tokenizer(**MODELS[kind])
    publish(model, tmp_path)
    found = convert_tokenizer(tmp_path, encoder_heads=2, decoder_heads=2)
    assert found.config == model.config
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in model.state_dict().items())
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(found.decode(found.encode(images)), model.decode(model.encode(images)))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", MODELS)
def test_names_survive_a_round_trip(kind: str) -> None:
    state = tokenizer(**MODELS[kind]).state_dict()
    back, ignored = from_published(to_published(state))
    assert ignored == [] and back.keys() == state.keys()
    assert all(torch.equal(back[name], value) for name, value in state.items())


def test_every_published_name_means_one_thing() -> None:
    published = [pair[0] for pair in KEYS.pairs]
    assert len(set(published)) == len(published)


def test_the_command_makes_a_folder_that_loads(tmp_path: Path) -> None:
    model = tokenizer()
    publish(model, tmp_path)
    folder = convert("maetok-tokenizer", tmp_path, tmp_path / "ours", ["encoder_heads=2", "decoder_heads=2"])
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(store.load(folder).encode(images), model.encode(images))


def test_what_is_left_out_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    state = publish(tokenizer(), tmp_path, vq_mean=0.5, vq_std=2.0)
    extra = {"projection.0.weight": torch.zeros(1), "repa_model.norm.weight": torch.zeros(1)}
    save_file({**state, **extra}, tmp_path / "model.safetensors")
    convert_tokenizer(tmp_path, encoder_heads=2, decoder_heads=2)
    reported = capsys.readouterr().err
    assert "left out: 2 (projection.0.weight, repa_model.norm.weight)" in reported
    assert "(tokens - 0.5) / 2.0" in reported


def test_wrappers_of_names_are_stripped(tmp_path: Path) -> None:
    model = tokenizer()
    state = publish(model, tmp_path)
    save_file({f"module._orig_mod.{name}": value for name, value in state.items()}, tmp_path / "model.safetensors")
    found = convert_tokenizer(tmp_path, encoder_heads=2, decoder_heads=2)
    assert torch.equal(found.encoder.queries, model.encoder.queries)


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({}, {}, "do not determine the attention heads of width 16: give encoder_heads"),
        ({"heads": 2}, {"quant_conv.weight": None}, "quant_conv.weight"),
        ({"heads": 2}, {"encoder.model.patch_embed.proj.weight": None}, "convolutional ones are not supported"),
        ({"heads": 2, "to_pixel": "siren"}, {}, "to_pixel: expected linear or conv, got siren"),
        ({"heads": 2, "rope_theta": "ten"}, {}, 'rope_theta: expected a number, got "ten"'),
        ({"heads": 2, "base_image_size": [32, 32]}, {}, "base_image_size: expected a number"),
    ],
)
def test_refusals_are_one_line(tmp_path: Path, options: dict[str, Any], change: dict[str, None], message: str) -> None:
    heads = options.pop("heads", None)
    state = publish(tokenizer(), tmp_path, **options)
    save_file({name: value for name, value in state.items() if name not in change}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=message) as error:
        convert_tokenizer(tmp_path, encoder_heads=heads, decoder_heads=heads)
    assert "\n" not in str(error.value)


def test_null_carries_no_information(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ("rope_theta", "enc_token_drop", "enc_token_drop_max", "vq_mean", "vq_std", "base_image_size", "tau")
    publish(tokenizer(), tmp_path, **dict.fromkeys(keys))
    found = convert_tokenizer(tmp_path, encoder_heads=2, decoder_heads=2).config
    assert (found.encoder.rope_theta, found.mask.low, found.mask.high) == (10.0, 0.4, 0.6)
    assert "generators expect" not in capsys.readouterr().err


def test_what_a_single_softvq_file_lacks_can_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tokenizer(**MODELS["softvq"])
    publish(model, tmp_path)
    image = torch.rand(2, 3, 32, 32)
    (tmp_path / "config.json").unlink()
    bare = convert_tokenizer(tmp_path / "model.safetensors", encoder_heads=2, decoder_heads=2)
    assert "no config.json with SoftVQ's temperature, using 0.1; give tau=" in capsys.readouterr().err
    assert (bare.config.bottleneck.tau, bare.config.bottleneck.l2) == (0.1, True)  # type: ignore[union-attr]
    given = {"encoder_heads": 2, "decoder_heads": 2, "tau": 0.2}
    found = convert_tokenizer(tmp_path / "model.safetensors", **given)
    assert "temperature" not in capsys.readouterr().err
    torch.testing.assert_close(found.encode(image), model.encode(image))
    assert not torch.allclose(bare.encode(image), model.encode(image), atol=1e-3)
    publish(tokenizer(), tmp_path)
    with pytest.raises(WeightsError, match="tau: expected none, because the bottleneck is plain"):
        convert_tokenizer(tmp_path, **given)


def test_the_unit_sphere_can_be_given(tmp_path: Path) -> None:
    publish(tokenizer(**MODELS["softvq"]), tmp_path)
    plain = convert_tokenizer(tmp_path, encoder_heads=2, decoder_heads=2, l2=False)
    assert not plain.config.bottleneck.l2  # type: ignore[union-attr]


def test_a_mask_token_stays_where_the_configuration_masks_nothing(tmp_path: Path) -> None:
    model = tokenizer()
    publish(model, tmp_path, enc_token_drop=0, enc_token_drop_max=0)
    found = convert_tokenizer(tmp_path, encoder_heads=2, decoder_heads=2)
    assert torch.equal(found.encoder.mask_token, model.encoder.mask_token)


def test_a_mask_token_of_a_decoder_without_queries_is_left_out(tmp_path: Path) -> None:
    model = tokenizer(num_tokens=0)
    state = publish(model, tmp_path)
    save_file({**state, "decoder.mask_token": torch.zeros(1, 1, 16)}, tmp_path / "model.safetensors")
    found = convert_tokenizer(tmp_path, encoder_heads=2, decoder_heads=2)
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_broken_configuration_is_reported(tmp_path: Path) -> None:
    publish(tokenizer(), tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json: not JSON"):
        convert_tokenizer(tmp_path)

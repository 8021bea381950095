"""The options of conversions: each changes the configuration, its default is the published one, and pages list it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tok1d.cli import app as cli
from tok1d.config.registry import build_model_config
from tok1d.generators.autoregressive import EpsilonLlamaGen, EpsilonLlamaGenConfig
from tok1d.generators.head import HeadConfig
from tok1d.generators.lightningdit import LightningDiT, LightningDiTConfig
from tok1d.generators.llamagen import LlamaGen, LlamaGenConfig
from tok1d.generators.maskgit import MaskGIT, MaskGITConfig
from tok1d.generators.sit import DiT, DiTConfig, SiT, SiTConfig
from tok1d.generators.usit import USiT, USiTConfig
from tok1d.nn.norm import RMSNorm
from tok1d.nn.position import sincos_2d, sincos_interleaved
from tok1d.zoo import store
from tok1d.zoo.adapters import llamagen, maetok, maskgit, semanticist_names, sit, titok
from tok1d.zoo.adapters.settings import declared
from tok1d.zoo.convert import FORMATS

State = dict[str, Tensor]
SIZES: dict[str, Any] = {"num_tokens": 4, "token_dim": 3, "num_classes": 6, "dim": 12, "depth": 1, "heads": 3}
CONFIGS: dict[Any, Any] = {SiT: SiTConfig, LightningDiT: LightningDiTConfig, USiT: USiTConfig}
PAGE = Path(__file__).parents[2] / "docs" / "commands.md"


def published_llamagen() -> State:
    return llamagen.to_published(
        LlamaGen(LlamaGenConfig(num_tokens=4, vocab_size=7, num_classes=3, dim=16, depth=1, heads=2)).state_dict()
    )


def published_maskgit() -> State:
    return maskgit.to_published(
        MaskGIT(MaskGITConfig(num_tokens=4, vocab_size=7, num_classes=3, dim=12, depth=1, heads=3)).state_dict()
    )


def published_ar() -> State:
    sizes = {**SIZES, "heads": 2, "head": HeadConfig(width=8, depth=1)}
    return semanticist_names.to_published(EpsilonLlamaGen(EpsilonLlamaGenConfig(**sizes)).state_dict())


def published_sequence(kind: Any) -> State:
    model: Any = {
        "sit": lambda: SiT(SiTConfig(**SIZES)),
        "dit": lambda: DiT(DiTConfig(**SIZES)),
        "lightningdit": lambda: LightningDiT(LightningDiTConfig(**SIZES, positions="1d", rotary="none")),
    }[kind]()
    return {**sit.to_published(model.state_dict(), kind), "pos_embed": sincos_interleaved(12, 4)[None]}


# Format: the weights, options that a file of this size needs, and for each option another value and the published
# default, with the place of the papers' or releases' value.
CASES: dict[str, tuple[Callable[[], State], list[str], dict[str, tuple[object, object]]]] = {
    "llamagen": (
        published_llamagen,
        ["heads=2", "num_tokens=4"],
        {
            "rope": ("1d", "2d"),
            "rope_base": (500.0, 10000.0),
            "norm_eps": (1e-3, 1e-5),
            "class_dropout": (0.2, 0.1),
        },
    ),
    "semanticist-ar": (
        published_ar,
        ["heads=2"],
        {
            "norm_eps": (1e-3, 1e-5),
            "steps": (7, 250),
            "time_scale": (1000.0, 1.0),
            "sampler": ("euler", "sde"),
            "last_step": (0.1, 0.04),
            "class_dropout": (0.2, 0.1),
        },
    ),
    "maskgit": (
        published_maskgit,
        ["heads=3"],
        {
            "norm_eps": (1e-3, None),
            "steps": (9, 8),
            "noise": (1.0, 9.5),
            "annealing": (False, True),
            "guidance_schedule": ("power_cosine", "linear"),
            "guidance_power": (2.0, 3.0),
            "class_dropout": (0.2, 0.1),
        },
    ),
    "maetok-sit": (
        lambda: published_sequence("sit"),
        ["heads=3"],
        {
            "path": ("cosine", "linear"),
            "norm_eps": (1e-3, 1e-6),
            "sampler": ("heun", "sde"),
            "steps": (9, 250),
            "last_step": (0.1, 0.04),
            "time_shift": (2.0, 1.0),
            "class_dropout": (0.2, 0.1),
        },
    ),
    "maetok-dit": (
        lambda: published_sequence("dit"),
        ["heads=3"],
        {"schedule": ("cosine", "linear"), "norm_eps": (1e-3, 1e-6), "steps": (9, 250), "class_dropout": (0.2, 0.1)},
    ),
    "lightningdit": (
        lambda: published_sequence("lightningdit"),
        ["heads=3"],
        {
            "sampler": ("heun", "euler"),
            "norm_eps": (1e-3, 1e-6),
            "steps": (9, 250),
            "time_shift": (1.0, 1 / 0.3),
            "class_dropout": (0.2, 0.1),
        },
    ),
}


def convert(format: str, path: Path, out: Path, *options: str) -> Any:
    assert cli.run(["convert", format, str(path), *options, "--out", str(out), "--overwrite"]) == 0
    return store.load(out)


def at(config: object, field: str) -> object:
    for name in field.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize("format", CASES)
def test_each_option_sets_its_field_and_the_default_is_the_published_value(format: str, tmp_path: Path) -> None:
    make, needed, values = CASES[format]
    torch.manual_seed(0)
    save_file({name: value.contiguous() for name, value in make().items()}, tmp_path / "a.safetensors")
    plain = convert(format, tmp_path / "a.safetensors", tmp_path / "out", *needed)
    options = {each.key: each for each in declared(FORMATS[format])}
    fields = {key for key, each in options.items() if each.setting.field}
    assert fields == values.keys() | {text.partition("=")[0] for text in needed} | ({"heads"} & fields)
    for key, (_, default) in values.items():
        assert at(plain.config, options[key].setting.field) == default, key
    # One conversion with all of them: no value is read by another option's field.
    given = [f"{key}={'false' if value is False else value}" for key, (value, _) in values.items()]
    other = convert(format, tmp_path / "a.safetensors", tmp_path / "out", *needed, *given)
    for key, (value, default) in values.items():
        assert at(other.config, options[key].setting.field) == value != default, key
    changed = {f.name for f in dataclasses.fields(plain.config) if at(plain.config, f.name) != at(other.config, f.name)}
    assert changed == {options[key].setting.field.split(".")[0] for key in values}


def test_the_card_states_what_was_assumed(tmp_path: Path) -> None:
    save_file(published_llamagen(), tmp_path / "a.safetensors")
    model = convert("llamagen", tmp_path / "a.safetensors", tmp_path / "out", "heads=2", "num_tokens=4", "rope=1d")
    assert model.card.trained["assumed"] == {"class_dropout": 0.1, "rope_base": 10000.0, "norm_eps": 1e-5}
    assert "norm_eps" in (tmp_path / "out" / "README.md").read_text()


def test_the_config_json_of_a_release_is_not_assumed(tmp_path: Path) -> None:
    save_file(published_maskgit(), tmp_path / "model.safetensors")
    inner = '{"model": {"generator": {"num_attention_heads": 3, "num_steps": 12}}}'
    (tmp_path / "config.json").write_text(inner)
    model = convert("maskgit", tmp_path, tmp_path / "out")
    assert model.config.steps == 12 and model.config.heads == 3
    assert {"steps", "heads"}.isdisjoint(model.card.trained["assumed"])
    assert {"noise", "guidance_power"} <= model.card.trained["assumed"].keys()
    assert convert("maskgit", tmp_path, tmp_path / "out", "steps=5").config.steps == 5  # the user's before the file's


def test_the_epsilon_of_the_norms_is_used() -> None:
    for cls, config in (
        (LlamaGen, LlamaGenConfig(num_tokens=4, vocab_size=7, dim=16, depth=1, heads=2, norm_eps=0.5)),
        (EpsilonLlamaGen, EpsilonLlamaGenConfig(**{**SIZES, "heads": 2}, head=HeadConfig(width=8), norm_eps=0.5)),
    ):
        model: Any = cls(config)  # type: ignore[operator]
        assert {each.eps for each in model.modules() if isinstance(each, RMSNorm)} == {0.5}
    masked = MaskGIT(MaskGITConfig(num_tokens=4, vocab_size=7, dim=12, depth=1, heads=3, norm_eps=0.5))
    assert {each.eps for each in masked.modules() if isinstance(each, torch.nn.LayerNorm)} == {0.5}


VIT = {"patch": 8, "dim": 16, "depth": 1, "heads": 2}
TOKENIZERS: dict[str, tuple[dict[str, Any], Callable[[State], State]]] = {
    "semanticist-tokenizer": (
        {"name": "semanticist", "encoder": VIT, "decoder": {**VIT, "patch": 4}},
        lambda state: {**semanticist_names.to_published(state), "dit.pos_embed": sincos_2d(16, 4, 4)[None]},
    ),
    "maetok-tokenizer": ({"name": "maetok", "encoder": VIT, "decoder": VIT}, maetok.to_published),
    "titok": ({"name": "titok", "encoder": VIT, "decoder": VIT}, titok.to_published),
}


@pytest.mark.parametrize("format", TOKENIZERS)
def test_the_epsilons_of_a_tokenizers_norms_are_options(format: str, tmp_path: Path) -> None:
    mapping, publish = TOKENIZERS[format]
    mapping = {**mapping, "image_size": 16, "channels": 3, "num_tokens": 3, "token_dim": 4}
    given = {"encoder": 5.0, "decoder": 2.5}
    torch.manual_seed(0)
    model: Any = store.build_model(
        build_model_config({**mapping, **{part: {**mapping[part], "norm_eps": eps} for part, eps in given.items()}})
    )
    save_file({k: v.contiguous() for k, v in publish(model.state_dict()).items()}, tmp_path / "a.safetensors")
    heads = ["encoder_heads=2", "decoder_heads=2"]
    options = [*heads, *(f"{part}_norm_eps={eps}" for part, eps in given.items())]
    other, plain = (convert(format, tmp_path / "a.safetensors", tmp_path / "out", *each) for each in (options, heads))
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(other.encode(images), model.eval().encode(images))
    if format != "titok":  # its ids are equal here
        assert not torch.equal(plain.encode(images), other.encode(images))
    for part, eps in given.items():
        norms = [each for each in getattr(other, part).modules() if isinstance(each, torch.nn.LayerNorm)]
        assert {each.eps for each in norms} == {eps}


@pytest.mark.parametrize("cls", [SiT, LightningDiT, USiT])
def test_the_epsilon_of_a_sequence_models_norms_is_used(cls: Any) -> None:
    model = cls(CONFIGS[cls](**SIZES, norm_eps=0.5))
    norms = [each for each in model.modules() if isinstance(each, torch.nn.LayerNorm | RMSNorm)]
    assert norms and {each.eps for each in norms} == {0.5}


def test_an_unknown_option_is_one_line_with_near_names(tmp_path: Path, capsys: Any) -> None:
    save_file(published_llamagen(), tmp_path / "a.safetensors")
    command = ["convert", "llamagen", str(tmp_path / "a.safetensors"), "--out", str(tmp_path / "out")]
    assert cli.run([*command, "norm_epss=1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "did you mean norm_eps?" in error and "rope_base" in error


def test_the_help_and_the_page_list_every_option(capsys: Any) -> None:
    assert cli.run(["convert", "--help-options"]) == 0
    shown, page = capsys.readouterr().out, PAGE.read_text()
    for format, function in FORMATS.items():
        assert f"\n{format}\n" in f"\n{shown}"
        for each in declared(function):
            line = f"{each.key}: {each.setting.help}; {each.kind}; default: {each.default_text}"
            assert line in shown
            assert f"| `{format}` | `{each.key}` | {each.setting.help} | {each.default_text} |" in page, each.key
    rows = [line for line in page.splitlines() if any(line.startswith(f"| `{format}` | `") for format in FORMATS)]
    assert len(rows) == sum(len(declared(function)) for function in FORMATS.values())

"""`tok1d convert`: its options, odd archives, half precision, and files whose parts are of the wrong kind."""

import argparse
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tok1d.errors import InputError, WeightsError
from tok1d.generators.llamagen import LlamaGen, LlamaGenConfig
from tok1d.generators.maskgit import MaskGIT, MaskGITConfig
from tok1d.generators.sit import SiT, SiTConfig
from tok1d.nn.position import sincos_interleaved
from tok1d.zoo import store
from tok1d.zoo.adapters import llamagen, maskgit, sit
from tok1d.zoo.adapters.keymap import mlp_ratio, read_published
from tok1d.zoo.convert import FORMATS, convert, parse_options

SIZES: dict[str, Any] = {"num_tokens": 4, "token_dim": 3, "num_classes": 6, "dim": 12, "depth": 2, "heads": 3}
State = dict[str, Tensor]


def random(model: Any) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def published_sit() -> State:
    state = sit.to_published(random(SiT(SiTConfig(**SIZES))).state_dict(), "sit")
    return {**state, "pos_embed": sincos_interleaved(12, 4)[None]}


def published_llamagen() -> State:
    config = LlamaGenConfig(num_tokens=9, vocab_size=7, num_classes=3, dim=16, depth=2, heads=2)
    return llamagen.to_published(random(LlamaGen(config)).state_dict())


def published_maskgit() -> State:
    config = MaskGITConfig(num_tokens=4, vocab_size=7, num_classes=3, dim=12, depth=2, heads=3)
    return maskgit.to_published(random(MaskGIT(config)).state_dict())


FILES: dict[str, tuple[Callable[[], State], list[str]]] = {
    "maetok-sit": (published_sit, ["heads=3"]),
    "llamagen": (published_llamagen, ["heads=2", "num_tokens=9"]),
    "maskgit": (published_maskgit, ["heads=3"]),
}


@pytest.mark.parametrize(
    ("format", "option", "message"),
    [
        ("maetok-sit", "heads=abc", "heads: expected int"),
        ("maetok-sit", "heads=-2", "heads: expected int >= 1"),
        ("maetok-sit", "heads=2.5", "heads: expected int"),
        ("maetok-sit", "path=foo", "path: expected linear or cosine"),
        ("maetok-sit", "class_dropout=2", "class_dropout: expected float"),
        ("maetok-sit", "std=0", "std: expected float > 0"),
        ("maetok-sit", "mean=.nan", "mean: expected float"),
        ("llamagen", "rope=3d", "rope: expected 1d or 2d or none"),
        ("llamagen", "rope_base=0", "rope_base: expected float > 0"),
        ("llamagen", "num_tokens=16.0", "num_tokens: expected int"),
        ("llamagen", "heads=[4]", "heads: expected int"),
        ("llamagen", "class_dropout=null", "class_dropout: expected float"),
        ("titok", "l2=maybe", "l2: expected true or false"),
        ("semanticist-tokenizer", "causal=1", "causal: expected true or false"),
        ("kl16", "groups=0", "groups: expected int >= 1"),
    ],
)
def test_options_of_another_type_or_range_are_refused(format: str, option: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_options(FORMATS[format], [option])
    assert "\n" not in str(caught.value)


def test_options_are_numbers_texts_and_paths() -> None:
    given = ["heads=4", "class_dropout=0", "mean=1", "std=2.5", "tokenizer=2024", "path=cosine"]
    found = parse_options(FORMATS["maetok-sit"], given)
    assert found == {"heads": 4, "class_dropout": 0, "mean": 1, "std": 2.5, "tokenizer": "2024", "path": "cosine"}
    assert parse_options(FORMATS["maetok-sit"], ["heads=null", "tokenizer=null"]) == {"heads": None, "tokenizer": None}


@pytest.mark.parametrize("text", ["2024", "a [x", "a b: c", "${x}", "[x", "{a: 1}", "ph #2", "&x", "!x", "010", " "])
def test_a_path_may_look_like_anything(text: str) -> None:
    for written in (text, f'"{text}"', f"'{text}'"):
        assert parse_options(FORMATS["maetok-sit"], [f"tokenizer={written}"]) == {"tokenizer": written}


@pytest.mark.parametrize("format", FILES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read(tmp_path: Path, format: str, dtype: torch.dtype) -> None:
    """The model of a file in half precision is the one of the same values in float32."""
    make, options = FILES[format]
    half = {name: value.to(dtype).contiguous() for name, value in make().items()}
    tables = {name: value for name, value in make().items() if name == "pos_embed"} if format == "maetok-sit" else {}
    save_file(half, tmp_path / "half.safetensors")
    save_file({**{name: value.float() for name, value in half.items()}, **tables}, tmp_path / "full.safetensors")
    models = [
        FORMATS[format](tmp_path / f"{name}.safetensors", **parse_options(FORMATS[format], options))
        for name in ("half", "full")
    ]
    for (name, value), other in zip(models[0].state_dict().items(), models[1].state_dict().values()):
        assert value.dtype == torch.float32 and torch.equal(value, other), name


def test_an_exception_of_foreign_weights_is_one_line(tmp_path: Path) -> None:
    """Parts of another rank or type than in the released files; any step of the conversion may detect them."""
    tables = {"llamagen": "cls_embedding.embedding_table.weight", "maskgit": "model.lm_head.weight"}
    for format, name in {**tables, "maetok-sit": "y_embedder.embedding_table.weight"}.items():
        make, options = FILES[format]
        save_file({**make(), name: torch.zeros(7)}, tmp_path / "odd.safetensors")
        with pytest.raises(WeightsError) as caught:
            convert(format, tmp_path / "odd.safetensors", tmp_path / "out", options)
        assert "\n" not in str(caught.value) and "odd.safetensors" in str(caught.value), format
        assert not (tmp_path / "out").exists()


def test_one_of_two_statistics_is_refused(tmp_path: Path) -> None:
    save_file(published_sit(), tmp_path / "sit.safetensors")
    for option in ("mean=0.1", "std=2"):
        with pytest.raises(WeightsError, match="mean and std: expected both"):
            convert("maetok-sit", tmp_path / "sit.safetensors", tmp_path / "out", ["heads=3", option])


def test_a_model_that_loading_would_refuse_is_not_written(tmp_path: Path) -> None:
    save_file(published_llamagen(), tmp_path / "c2i.safetensors")
    convert("llamagen", tmp_path / "c2i.safetensors", tmp_path / "out", FILES["llamagen"][1])
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    (tmp_path / "config.json").write_text(json.dumps({"model": {"generator": {"num_steps": 0}}}))
    save_file(published_maskgit(), tmp_path / "maskgit.safetensors")
    with pytest.raises(WeightsError, match=r"an unsupported configuration: model\.steps: expected int >= 1"):
        convert("maskgit", tmp_path / "maskgit.safetensors", tmp_path / "out", ["heads=3"])
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert isinstance(store.load(tmp_path / "out"), LlamaGen)


def test_counters_and_paths_of_a_trainer_are_no_obstacle(tmp_path: Path) -> None:
    options = argparse.Namespace(out=Path("/runs"), lr=np.float32(1e-4))
    content = {"model": {"a": torch.ones(2)}, "args": options, "steps": np.int64(3), "done": np.bool_(True)}
    torch.save(content, tmp_path / "trainer.pt")
    assert torch.equal(read_published(tmp_path / "trainer.pt")["a"], torch.ones(2))


def test_the_names_of_other_versions_are_known(tmp_path: Path) -> None:
    """Python 3.13 calls a path's class pathlib._local.PosixPath, numpy 1 its scalars numpy.core's."""
    torch.save({"model": {"a": torch.ones(2)}, "out": Path("/runs"), "step": np.int64(3)}, tmp_path / "new.pt")
    with zipfile.ZipFile(tmp_path / "new.pt") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in parts if name.endswith("data.pkl"))
    changes = {b"cpathlib\n": b"cpathlib._local\n", b"cnumpy._core.multiarray\n": b"cnumpy.core.multiarray\n"}
    for old, new in changes.items():
        assert old in parts[pickled]
        parts[pickled] = parts[pickled].replace(old, new)
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    assert torch.equal(read_published(tmp_path / "other.pt")["a"], torch.ones(2))


class Elsewhere:
    """A class that no archive should need."""


def test_other_classes_are_named_and_not_run(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(2)}, "args": Elsewhere()}, tmp_path / "trainer.pt")
    with pytest.raises(WeightsError, match=r"contains a \S*Elsewhere; a pickle can run code") as caught:
        read_published(tmp_path / "trainer.pt")
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_llamagen_saved_after_sampling(tmp_path: Path) -> None:
    cache = {f"layers.{i}.attention.kv_cache.{name}_cache": torch.zeros(2, 2, 9, 8) for i in (0, 1) for name in "kv"}
    save_file({**published_llamagen(), **cache}, tmp_path / "c2i.safetensors")
    model = llamagen.convert_llamagen(tmp_path / "c2i.safetensors", heads=2, num_tokens=9)
    assert torch.equal(model.state_dict()["norm.weight"], published_llamagen()["norm.weight"])


def test_a_maskgit_folder_of_an_averaged_pickle(tmp_path: Path) -> None:
    averaged = {f"ema_model.{name}": value for name, value in published_maskgit().items()}
    torch.save(averaged, tmp_path / "pytorch_model.bin")
    options = {"num_attention_heads": 3, "guidance_decay": "power-cosine", "guidance_scale_pow": 2.75}
    (tmp_path / "config.json").write_text(json.dumps({"model": {"generator": options}}))
    model = maskgit.convert_maskgit(tmp_path)
    assert (model.config.guidance_power, model.config.guidance_schedule) == (2.75, "power_cosine")
    assert model.config.num_tokens == 4


@pytest.mark.parametrize(("key", "value"), [("image_seq_len", 99), ("condition_num_classes", 2), ("num_steps", "abc")])
def test_a_maskgit_config_of_another_model(tmp_path: Path, key: str, value: Any) -> None:
    save_file(published_maskgit(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model": {"generator": {"num_attention_heads": 3, key: value}}}))
    with pytest.raises(WeightsError, match=f"config.json.*{key}"):
        maskgit.convert_maskgit(tmp_path)


def test_ratios_give_their_hidden_width_back() -> None:
    for width in range(8, 300):
        for hidden in (width + 1, 2 * width - 1, int(2.6667 * width), 4 * width):
            assert int(width * mlp_ratio(hidden, width)) == hidden

"""Published generators of ids, LlamaGen and MaskGIT: round trips, wrappers, stray entries, files that do not fit."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tok1d.errors import WeightsError
from tok1d.generators.llamagen import LlamaGen, LlamaGenConfig
from tok1d.generators.maskgit import MaskGIT, MaskGITConfig
from tok1d.zoo import store
from tok1d.zoo.adapters import llamagen, maskgit
from tok1d.zoo.adapters.llamagen import convert_llamagen
from tok1d.zoo.adapters.maskgit import convert_maskgit
from tok1d.zoo.convert import convert

IDS = {"vocab_size": 7, "num_classes": 3}


def random(model: Any) -> Any:
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def small_llamagen(**options: Any) -> LlamaGen:
    torch.manual_seed(0)
    return random(LlamaGen(LlamaGenConfig(num_tokens=9, dim=16, depth=2, heads=2, hidden=24, **IDS, **options)))


def small_maskgit(**options: Any) -> MaskGIT:
    torch.manual_seed(0)
    return random(MaskGIT(MaskGITConfig(num_tokens=4, dim=12, depth=3, heads=3, **IDS, **options)))


def same_model(a: nn.Module, b: nn.Module) -> bool:
    return a.state_dict().keys() == b.state_dict().keys() and all(
        torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items()
    )


LLAMAGEN: dict[str, Any] = {"num_tokens": 9, "heads": 2}


@pytest.mark.parametrize("kv_heads", [None, 1])
@pytest.mark.parametrize("rope", ["2d", "1d", "none"])
def test_llamagen_round_trip(tmp_path: Path, rope: Any, kv_heads: int | None) -> None:
    model = small_llamagen(rope=rope, kv_heads=kv_heads)
    published = llamagen.to_published(model.state_dict())
    assert llamagen.from_published(published).keys() == model.state_dict().keys()
    save_file(published, tmp_path / "c2i.safetensors")
    found = convert_llamagen(tmp_path / "c2i.safetensors", **LLAMAGEN, rope=rope)
    assert found.config == model.config and same_model(found, model) and not found.training
    samples = (each.sample(torch.tensor([1, 2]), guidance=2.0) for each in (found, model))
    assert torch.equal(*samples)


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict", "", "ema"])
def test_llamagen_in_any_wrapper(tmp_path: Path, wrapper: str) -> None:
    model = small_llamagen(rope="2d")
    state = {**llamagen.to_published(model.state_dict()), "freqs_cis": torch.zeros(10, 4, 2)}
    beside = {"optimizer": {"state": {}}, "steps": 3, "args": argparse.Namespace(lr=1e-4)}
    raw = {name: value + 1 for name, value in state.items()}
    content = {**beside, **({"model": raw} if wrapper == "ema" else {}), wrapper: state} if wrapper else state
    torch.save(content, tmp_path / "c2i_B_256.pt")
    assert same_model(convert_llamagen(tmp_path / "c2i_B_256.pt", **LLAMAGEN), model)


def test_llamagen_length_is_that_of_a_stored_table_or_256(tmp_path: Path) -> None:
    state = llamagen.to_published(small_llamagen(rope="2d").state_dict())
    for name, table in {"with": {"freqs_cis": torch.zeros(10, 4, 2)}, "without": {}}.items():
        save_file({**state, **table}, tmp_path / f"{name}.safetensors")
    assert convert_llamagen(tmp_path / "with.safetensors", heads=2).config.num_tokens == 9
    assert convert_llamagen(tmp_path / "without.safetensors", heads=2).config.num_tokens == 256


def test_llamagen_through_the_command(tmp_path: Path) -> None:
    model = small_llamagen(rope="2d")
    torch.save({"model": llamagen.to_published(model.state_dict())}, tmp_path / "c2i.pt")
    out = convert("llamagen", tmp_path / "c2i.pt", tmp_path / "ours", ["num_tokens=9", "heads=2"])
    assert same_model(store.load(out), model)


def test_llamagen_files_that_do_not_fit(tmp_path: Path) -> None:
    state = llamagen.to_published(small_llamagen(rope="2d").state_dict())

    def fails(state: dict[str, Tensor], **options: Any) -> str:
        save_file(state, tmp_path / "c2i.safetensors")
        with pytest.raises(WeightsError) as caught:
            convert_llamagen(tmp_path / "c2i.safetensors", **{**LLAMAGEN, **options})
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "attention heads of width 16: give heads=" in fails(state, heads=None)
    assert "rope: expected a square number of tokens for 2d, got 8" in fails(state, num_tokens=8)
    table = {"freqs_cis": torch.zeros(5, 4, 2)}
    assert "freqs_cis has 4 tokens, expected num_tokens=4, got 9" in fails({**state, **table})
    assert "weights not part of this model: 1 (vision.proj)" in fails({**state, "vision.proj": torch.zeros(1)})
    without = {name: value for name, value in state.items() if name != "layers.1.attention.wo.weight"}
    assert "weights missing: 1 (layers.1.attention.wo.weight)" in fails(without)
    without = {name: value for name, value in state.items() if name != "tok_embeddings.weight"}
    assert "tok_embeddings.weight is missing" in fails(without)


@pytest.mark.parametrize("trunk", ["vit", "uvit"])
def test_maskgit_round_trip(tmp_path: Path, trunk: Any) -> None:
    model = small_maskgit(trunk=trunk)
    published = maskgit.to_published(model.state_dict())
    again = maskgit.from_published(published)
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())
    assert again.keys() == model.state_dict().keys()
    torch.save(published, tmp_path / "generator.bin")
    found = convert_maskgit(tmp_path / "generator.bin", heads=3)
    assert found.config == model.config and same_model(found, model) and not found.training


def test_maskgit_names_and_tables() -> None:
    """One table of codes, mask, classes and null class; queries, keys and values apart; blocks of three kinds."""
    vit, uvit = small_maskgit(), small_maskgit(trunk="uvit")
    published = maskgit.to_published(vit.state_dict())
    words = published["model.embeddings.word_embeddings.weight"]
    assert words.shape == (7 + 3 + 2, 12) and published["model.embeddings.position_embeddings.weight"].shape == (5, 12)
    assert torch.equal(words[7], vit.net.token_embed.weight[7]), "the mask"
    assert torch.equal(words[8 + 3], vit.label_embed.table.weight[3]), "the null class"
    key = published["model.encoder.layer.2.attention.self.key.weight"]
    assert torch.equal(key, vit.net.blocks[2].attn.qkv.weight[12:24])
    published = maskgit.to_published(uvit.state_dict())
    assert {name.split(".")[0] for name in published} == {
        *("embeddings", "pos_embed", "in_blocks", "mid_block", "out_blocks", "norm", "lm_head")
    }
    assert torch.equal(published["out_blocks.0.skip_linear.weight"], uvit.net.skips[0].weight)
    assert torch.equal(published["out_blocks.0.mlp.fc1.bias"], uvit.net.blocks[2].mlp.fc1.bias)
    assert torch.equal(published["mid_block.norm1.bias"], uvit.net.blocks[1].norm1.bias)


def test_maskgit_token_type_is_added_to_every_position(tmp_path: Path) -> None:
    model = small_maskgit()
    published = maskgit.to_published(model.state_dict())
    kind = torch.randn(2, 12)
    published["model.embeddings.token_type_embeddings.weight"] = kind
    published["model.embeddings.position_ids"] = torch.arange(5)[None]
    save_file(published, tmp_path / "model.safetensors")
    found = convert_maskgit(tmp_path / "model.safetensors", heads=3)
    torch.testing.assert_close(found.net.positions, model.net.positions + kind[0])


def test_a_maskgit_folder_gives_its_heads_and_sampling_settings(tmp_path: Path) -> None:
    model = small_maskgit(class_dropout=0.2, steps=64, noise=2.8, guidance_schedule="power_cosine")
    save_file(maskgit.to_published(model.state_dict()), tmp_path / "model.safetensors")
    options: dict[str, Any] = {"num_attention_heads": 3, "class_label_dropout": 0.2, "num_steps": 64}
    options |= {"randomize_temperature": 2.8, "guidance_decay": "power-cosine", "guidance_scale": 6.9}
    (tmp_path / "config.json").write_text(json.dumps({"model": {"generator": options}}))
    found = convert_maskgit(tmp_path)
    assert found.config == model.config and same_model(found, model)
    (tmp_path / "config.json").write_text(json.dumps({"model": {"generator": {**options, "guidance_decay": "x"}}}))
    with pytest.raises(WeightsError, match="unknown guidance_decay 'x'"):
        convert_maskgit(tmp_path)


def test_maskgit_files_that_do_not_fit(tmp_path: Path) -> None:
    def fails(state: dict[str, Tensor], **options: Any) -> str:
        torch.save(state, tmp_path / "generator.bin")
        with pytest.raises(WeightsError) as caught:
            convert_maskgit(tmp_path / "generator.bin", **{"heads": 3, **options})
        assert "\n" not in str(caught.value)
        return str(caught.value)

    for trunk, gone in (("vit", "model.encoder.layer.1.attention.self.key.bias"), ("uvit", "in_blocks.0.norm2.bias")):
        state = maskgit.to_published(small_maskgit(trunk=trunk).state_dict())
        assert "attention heads of width 12: give heads=" in fails(state, heads=None)
        assert "expected class_dropout above 0" in fails(state, class_dropout=0.0)
        assert "not part of this model: 1 (extra)" in fails({**state, "extra": torch.zeros(1)})
        message = fails({name: value for name, value in state.items() if name != gone})
        assert "weights missing: 1" in message and message.count("is this the right file and format?") == 1
        table = "model.embeddings.word_embeddings.weight" if trunk == "vit" else "embeddings.weight"
        assert f"{table} is missing" in fails({name: value for name, value in state.items() if name != table})

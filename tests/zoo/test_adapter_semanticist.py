"""Published Semanticist weights <-> ours: round trips, inferred configurations, and files that do not fit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tok1d.cli import app as cli
from tok1d.errors import WeightsError
from tok1d.generators.autoregressive import EpsilonLlamaGen, EpsilonLlamaGenConfig
from tok1d.generators.head import HeadConfig
from tok1d.nn.position import sincos_2d
from tok1d.tokenizers.query_encoder import EncoderConfig
from tok1d.tokenizers.semanticist import Semanticist, SemanticistConfig
from tok1d.tokenizers.token_dit import DecoderConfig
from tok1d.zoo import store
from tok1d.zoo.adapters.keymap import KeyMap, clean, read_published
from tok1d.zoo.adapters.semanticist import convert_ar, convert_tokenizer, tokenizer_config
from tok1d.zoo.adapters.semanticist_names import PARTS, from_published, part, to_published

State = dict[str, Tensor]


def tokenizer() -> Semanticist:
    return Semanticist(
        SemanticistConfig(
            image_size=12,
            channels=3,
            num_tokens=5,
            token_dim=3,
            encoder=EncoderConfig(patch=4, dim=8, depth=2, heads=2, mlp_ratio=2.5),
            decoder=DecoderConfig(
                patch=2, dim=12, depth=3, heads=3, mlp_ratio=3.0, align_depth=2, align_hidden=7, align_dim=6
            ),
        )
    )


def generator(**head: object) -> EpsilonLlamaGen:
    config = EpsilonLlamaGenConfig(
        num_tokens=4, token_dim=3, num_classes=6, dim=8, depth=2, heads=2, class_tokens=2, head=HeadConfig(**head)
    )
    return EpsilonLlamaGen(config)


def published_tokenizer(model: Semanticist) -> State:
    """A whole file, with everything the release stores besides the weights that are ours."""
    state = to_published(model.state_dict())
    state["dit.pos_embed"] = sincos_2d(12, 6, 6)[None]
    state["nested_sampler.arange"] = torch.arange(5)
    state["vae.decoder.conv_in.weight"] = torch.zeros(1)
    state["repa_encoder.norm.weight"] = torch.zeros(1)
    return state


def same(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("prefix", PARTS)
def test_names_survive_a_round_trip_in_whole_files_and_parts(prefix: str) -> None:
    models = [tokenizer(), generator(width=8, depth=2)]
    states = [part(model.state_dict(), PARTS[prefix]) for model in models]
    assert any(states)
    for state in filter(None, states):
        published = to_published(state, prefix)
        assert len(published) == len(state)
        assert same(from_published(published, prefix), state)


def test_every_name_of_a_key_map_means_one_thing() -> None:
    from tok1d.zoo.adapters.semanticist_names import KEYS

    for column in (0, 1):
        patterns = [pair[column] for pair in KEYS.pairs]
        assert len(set(patterns)) == len(patterns)


def test_convert_tokenizer_finds_the_shape_in_the_file(tmp_path: Path) -> None:
    model = tokenizer().eval()
    save_file(published_tokenizer(model), tmp_path / "model.safetensors")
    found = convert_tokenizer(tmp_path, encoder_heads=2, decoder_heads=3, align_depth=2)
    expected = model.config
    expected.encoder.mlp_ratio, expected.decoder.mlp_ratio = found.config.encoder.mlp_ratio, 3.0
    assert found.config == expected
    images = torch.rand(2, 3, 12, 12)
    assert torch.equal(found.encode(images), model.encode(images))


def test_averaged_weights_of_a_compiled_model_are_preferred(tmp_path: Path) -> None:
    raw, averaged = tokenizer(), tokenizer()
    save_file(published_tokenizer(raw), tmp_path / "model.safetensors")
    names = {"dit.": "dit._orig_mod.", "encoder2slot.": "encoder2slot._orig_mod."}
    state = to_published(averaged.state_dict())
    for plain, wrapped in names.items():
        state = {name.replace(plain, wrapped, 1): value for name, value in state.items()}
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "custom_checkpoint_1.pkl")
    found = convert_tokenizer(tmp_path, encoder_heads=2, decoder_heads=3, align_depth=2)
    assert same(found.state_dict(), averaged.state_dict())


@pytest.mark.parametrize("condition", ["concat", "adaln"])
@pytest.mark.parametrize("objective", ["interpolant", "ddpm"])
def test_convert_ar_finds_the_head_in_the_file(tmp_path: Path, condition: str, objective: str) -> None:
    model = generator(width=8, depth=3, condition=condition, objective=objective)
    state = to_published(model.state_dict())
    save_file({**state, "layers.0.attention.kv_cache.k_cache": torch.zeros(1)}, tmp_path / "ar.safetensors")
    found = convert_ar(tmp_path / "ar.safetensors", heads=2)
    assert found.config == model.config
    assert same(found.state_dict(), model.state_dict())


def test_a_label_table_without_dropout_has_no_null_class(tmp_path: Path) -> None:
    save_file(to_published(generator(width=8, depth=1).state_dict()), tmp_path / "ar.safetensors")
    assert convert_ar(tmp_path / "ar.safetensors", heads=2, class_dropout=0.0).config.num_classes == 7


def test_swiglu_gate_and_up_are_not_interchangeable() -> None:
    gate, up = torch.ones(2, 2), torch.zeros(2, 2)
    state = {"layers.7.feed_forward.w1.weight": gate, "layers.7.feed_forward.w3.weight": up}
    assert same(from_published(state), {"blocks.7.mlp.gate.weight": gate, "blocks.7.mlp.up.weight": up})


def refused(state: State, tmp_path: Path, **options: int) -> str:
    save_file(state, tmp_path / "file.safetensors")
    with pytest.raises(WeightsError) as caught:
        convert_tokenizer(tmp_path / "file.safetensors", **({"encoder_heads": 2, "decoder_heads": 3} | options))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing_weights_are_reported_by_their_published_names(tmp_path: Path) -> None:
    state = published_tokenizer(tokenizer())
    del state["dit.final_layer.linear.bias"], state["encoder.norm.weight"]
    message = refused(state, tmp_path, align_depth=2)
    assert "missing: 2 (dit.final_layer.linear.bias, encoder.norm.weight)" in message


def test_unexpected_weights_are_counted(tmp_path: Path) -> None:
    extra = {f"dit.extra.{i}": torch.zeros(1) for i in range(5)}
    message = refused(published_tokenizer(tokenizer()) | extra, tmp_path)
    assert "5 (dit.extra.0, dit.extra.1, dit.extra.2, ...)" in message


def test_a_file_of_the_other_model_is_refused(tmp_path: Path) -> None:
    assert "encoder.patch_embed.proj.weight is missing" in refused(
        to_published(generator(width=8, depth=1).state_dict()), tmp_path
    )


def test_another_position_table_is_refused(tmp_path: Path) -> None:
    state = published_tokenizer(tokenizer())
    state["dit.pos_embed"] = state["dit.pos_embed"].clone()
    state["dit.pos_embed"][0, 3, 2] += 2e-4
    assert "dit.pos_embed" in refused(state, tmp_path)


def test_a_decoder_of_latents_is_not_taken_for_one_of_pixels() -> None:
    state = from_published(published_tokenizer(tokenizer()))
    state["decoder.patch_embed.proj.weight"] = torch.zeros(12, 16, 2, 2)
    with pytest.raises(WeightsError, match="latents of 16 channels"):
        tokenizer_config(state, encoder_heads=2, decoder_heads=3)


def test_options_that_do_not_fit_the_weights_are_named(tmp_path: Path) -> None:
    with_projector = from_published(published_tokenizer(tokenizer()))
    for name, shape in (("0.weight", (5, 12)), ("0.bias", (5,)), ("4.weight", (7, 5)), ("4.bias", (7,))):
        with_projector[f"decoder.projector.{name}"] = torch.zeros(shape)
    with pytest.raises(
        WeightsError, match=r"align_depth: expected at most depth 3, got 8; give align_depth="
    ) as caught:
        tokenizer_config(with_projector, encoder_heads=2, decoder_heads=3)
    assert "do not fit" not in str(caught.value)
    with pytest.raises(WeightsError, match=r"decoder\.heads.*; give decoder_heads="):
        tokenizer_config(from_published(published_tokenizer(tokenizer())), encoder_heads=2, decoder_heads=5)


def test_heads_of_published_widths_are_known_and_others_are_required(tmp_path: Path) -> None:
    assert "give encoder_heads" in refused(published_tokenizer(tokenizer()), tmp_path, encoder_heads=None)


def test_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1), "run": Path}, tmp_path / "evil.pkl")
    with pytest.raises(WeightsError, match="plain tensors"):
        read_published(tmp_path / "evil.pkl")


def test_a_truncated_archive_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(100)}, tmp_path / "whole.pkl")
    (tmp_path / "cut.pkl").write_bytes((tmp_path / "whole.pkl").read_bytes()[:200])
    for path, words in ((tmp_path / "cut.pkl", "torch archive"), (tmp_path, "expected a weight file")):
        with pytest.raises(WeightsError, match=words):
            read_published(path)


def test_wrappers_are_removed_anywhere_and_double_names_refused() -> None:
    value = torch.zeros(1)
    assert clean({"module._orig_mod.dit._orig_mod.module.x": value}).keys() == {"dit.x"}
    with pytest.raises(WeightsError, match="twice"):
        clean({"a": value, "_orig_mod.a": value})


def test_a_key_map_renames_whole_names_only() -> None:
    keys = KeyMap([("a.{i}.x.{p}", "b.{i}.y.{p}")])
    assert keys.ours("a.12.x.bias") == "b.12.y.bias"
    assert keys.published("b.0.y.weight") == "a.0.x.weight"
    assert keys.ours("a.12.x.bias.more") is keys.ours("z.a.1.x.bias") is keys.ours("a.one.x.bias") is None


def test_a_converted_generator_names_its_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    head = HeadConfig(width=8, depth=2)
    made = EpsilonLlamaGen(
        EpsilonLlamaGenConfig(num_tokens=8, token_dim=16, num_classes=10, dim=8, depth=2, heads=2, head=head)
    )
    save_file(to_published(made.state_dict()), tmp_path / "ar.safetensors")
    command = ["convert", "semanticist-ar", str(tmp_path / "ar.safetensors"), "heads=2", "--out", str(tmp_path / "ar")]
    assert cli.run([*command, "--tokenizer", "fashion-mnist-semanticist"]) == 0, capsys.readouterr().err
    pair = store.load_pair(tmp_path / "ar")
    assert same(pair[0].state_dict(), made.state_dict()) and pair[1].spec.length == 16
    pictures = tmp_path / "pictures"
    assert cli.run(["generate", str(tmp_path / "ar"), "--num", "1", "--classes", "3", "--out", str(pictures)]) == 0
    capsys.readouterr()
    refused = [str(tmp_path / "other") if word == str(tmp_path / "ar") else word for word in command]
    for name, message in {
        "fashion-mnist-maetok": "num_tokens: these tokens have no order, so a generator models all 16, got 8",
        "fashion-mnist-sit": "--tokenizer: expected a tokenizer, got fashion-mnist-sit, a sit",
    }.items():
        assert cli.run([*refused, "--tokenizer", name]) == 2
        reported = capsys.readouterr().err
        assert message in reported and reported.count("\n") == 1 and not (tmp_path / "other").exists()

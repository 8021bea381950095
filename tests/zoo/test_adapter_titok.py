"""Published TiTok tokenizers <-> ours: round trips, configuration from the file, wrappers, what is left out, errors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tok1d.config.registry import build_model_config
from tok1d.errors import WeightsError
from tok1d.zoo import store
from tok1d.zoo.adapters.titok import KEYS, LEGACY_KEYS, convert_titok, from_published, to_published
from tok1d.zoo.compat.titok import LegacyTiTok
from tok1d.zoo.convert import convert

SMALL = {"patch": 8, "dim": 16, "depth": 2, "heads": 2, "mlp_ratio": 2.0}
WIDER = {**SMALL, "dim": 24, "depth": 1, "heads": 3}
HEADS: dict[str, Any] = {"encoder_heads": 2, "decoder_heads": 3}
SIZES = {"image_size": 16, "num_tokens": 5, "token_dim": 3, "encoder": SMALL, "decoder": WIDER}
PIXELS = {"code_dim": 6, "width": 32, "mult": [1, 1, 2, 2], "blocks": 2}

MODELS: dict[str, dict[str, Any]] = {
    "vq": {"name": "titok", "bottleneck": {"name": "vq", "size": 7, "l2": False}},
    "revived vq": {"name": "titok", "bottleneck": {"name": "vq", "size": 7, "l2": False, "revival": True}},
    "vae": {"name": "titok", "bottleneck": {"name": "kl", "weight": 1e-5}},
    "text": {
        "name": "titok",
        "bottleneck": {"name": "vq", "size": 7, "l2": False, "beta": 0.5},
        "text": True,
        "text_length": 4,
        "text_dim": 9,
    },
    "legacy stage one": {
        "name": "titok_legacy",
        "bottleneck": {"name": "vq", "size": 7},
        "codes": 11,
        "stage": "train",
    },
    "legacy": {"name": "titok_legacy", "bottleneck": {"name": "vq", "size": 7}, "codes": 11, "pixels": PIXELS},
}


def tokenizer(kind: str) -> Any:
    torch.manual_seed(0)
    model = store.build_model(build_model_config({**SIZES, **MODELS[kind]}))
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.3)
    for usage in model.buffers():
        nn.init.uniform_(usage)
    return model.eval()


def publish(model: Any, folder: Path) -> dict[str, Tensor]:
    """A folder as the hub has it: the configuration of a training as JSON, and the weights."""
    config = model.config
    state = {name: value.contiguous() for name, value in to_published(model.state_dict()).items()}
    save_file(state, folder / "model.safetensors")
    vq_model = {
        "num_latent_tokens": config.num_tokens,
        "token_size": config.token_dim,
        "codebook_size": getattr(config.bottleneck, "size", 4096),
        "use_l2_norm": getattr(config.bottleneck, "l2", False),
        "commitment_cost": getattr(config.bottleneck, "beta", 0.25),
        "is_legacy": isinstance(model, LegacyTiTok),
        "vit_enc_patch_size": 8,
    }
    losses = {"quantizer_weight": 1.0, "kl_weight": getattr(config.bottleneck, "weight", 1e-6)}
    nested = {"experiment": {"name": "tiny"}, "model": {"vq_model": vq_model}, "losses": losses}
    (folder / "config.json").write_text(json.dumps(nested))
    return state


def rewrite(folder: Path, **changes: Any) -> None:
    """Other options in the folder's configuration."""
    content = json.loads((folder / "config.json").read_text())
    content["model"]["vq_model"].update(changes)
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize("kind", MODELS)
def test_conversion_finds_the_model_in_the_folder(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tokenizer(kind)
    publish(model, tmp_path)
    found = convert_titok(tmp_path, **HEADS)
    expected = model.config
    if kind == "legacy stage one":
        expected.pixels = found.config.pixels  # nothing is built from it
    assert found.config == expected and not found.training
    assert found.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in model.state_dict().items())
    assert torch.equal(found.encode(torch.ones(1, 3, 16, 16)), model.encode(torch.ones(1, 3, 16, 16)))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("mult", [[2, 2, 4, 4], [2, 3, 4, 4], [3, 2, 1, 1]])
def test_any_levels_of_the_pixel_decoder(tmp_path: Path, mult: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the products of width and multiples are in the weights."""
    monkeypatch.setitem(MODELS, "levels", {**MODELS["legacy"], "pixels": {**PIXELS, "mult": mult}})
    model = tokenizer("levels")
    publish(model, tmp_path)
    found = convert_titok(tmp_path, **HEADS)
    pixels = found.config.pixels
    assert [pixels.width * each for each in pixels.mult] == [32 * each for each in mult]
    ids = torch.arange(5)[None]
    assert torch.equal(found.decode(ids), model.decode(ids))


@pytest.mark.parametrize("kind", MODELS)
def test_names_and_shapes_survive_a_round_trip(kind: str) -> None:
    state = tokenizer(kind).state_dict()
    published = to_published(state)
    back, ignored = from_published(published)
    assert ignored == [] and back.keys() == state.keys()
    assert all(torch.equal(back[name], value) for name, value in state.items())


@pytest.mark.parametrize("keys", [KEYS, LEGACY_KEYS])
def test_every_published_name_means_one_thing(keys: Any) -> None:
    for side in (0, 1):
        names = [pair[side] for pair in keys.pairs]
        assert len(set(names)) == len(names)


def linear(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def published_layout(dim: int, depth: int, tokens: int, *, part: str) -> dict[str, tuple[int, ...]]:
    """One side of the released files, 256 pixels in patches of 16: name -> shape."""
    shapes: dict[str, tuple[int, ...]] = {
        f"{part}.class_embedding": (1, dim),
        f"{part}.positional_embedding": (257, dim),
        f"{part}.latent_token_positional_embedding": (tokens, dim),
        **linear(f"{part}.ln_pre", dim),
        **linear(f"{part}.ln_post", dim),
    }
    for i in range(depth):
        block = f"{part}.transformer.{i}."
        shapes |= linear(f"{block}ln_1", dim) | linear(f"{block}ln_2", dim)
        shapes |= {f"{block}attn.in_proj_weight": (3 * dim, dim), f"{block}attn.in_proj_bias": (3 * dim,)}
        shapes |= linear(f"{block}attn.out_proj", dim, dim)
        shapes |= linear(f"{block}mlp.c_fc", 4 * dim, dim) | linear(f"{block}mlp.c_proj", dim, 4 * dim)
    return shapes


def pixel_layout() -> dict[str, tuple[int, ...]]:
    """MaskGIT-VQGAN's decoder as released: 128 channels times 1, 1, 2, 2, 4 and two blocks a level."""
    widths = [128, 128, 256, 256, 512]
    decoder = "pixel_decoder."
    shapes = linear(f"{decoder}conv_in", 512, 256, 3, 3) | linear(f"{decoder}conv_out", 3, 128, 3, 3)
    shapes |= {"pixel_quantize.embedding.weight": (1024, 256), **linear(f"{decoder}norm_out", 128)}

    def block(name: str, a: int, b: int) -> dict[str, tuple[int, ...]]:
        found = linear(f"{name}.norm1", a) | linear(f"{name}.norm2", b)
        found |= {f"{name}.conv1.weight": (b, a, 3, 3), f"{name}.conv2.weight": (b, b, 3, 3)}
        return found | ({f"{name}.nin_shortcut.weight": (b, b, 1, 1)} if a != b else {})

    for j in range(2):
        shapes |= block(f"{decoder}mid.{j}", 512, 512)
    for level, (width, before) in enumerate(zip(widths, [*widths[1:], 512], strict=True)):
        shapes |= block(f"{decoder}up.{level}.block.0", before, width)
        shapes |= block(f"{decoder}up.{level}.block.1", width, width)
        if level:
            shapes |= linear(f"{decoder}up.{level}.upsample_conv", width, width, 3, 3)
    return shapes


@pytest.mark.parametrize(
    ("recipe", "sides", "tokens", "legacy", "entries"),
    [
        ("titok_l32", ((1024, 24), (1024, 24)), 32, True, (4096, 12)),
        ("titok_b64", ((768, 12), (768, 12)), 64, True, (4096, 12)),
        ("titok_s128", ((512, 8), (512, 8)), 128, True, (4096, 12)),
        ("titok_bl128_vq", ((768, 12), (1024, 24)), 128, False, (8192, 64)),
        ("titok_sl256_vq", ((512, 8), (1024, 24)), 256, False, (8192, 64)),
        ("titok_ll32_vae", ((1024, 24), (1024, 24)), 32, False, (0, 16)),
    ],
)
def test_released_layouts_are_those_of_the_recipes(
    recipe: str, sides: Any, tokens: int, legacy: bool, entries: tuple[int, int]
) -> None:
    from tok1d.config.load import load_recipe

    (encoder, _), (decoder, _) = sides
    size, token_dim = entries
    shapes = {"latent_tokens": (tokens, encoder), "decoder.mask_token": (1, 1, decoder)}
    shapes |= published_layout(*sides[0], tokens, part="encoder") | published_layout(*sides[1], tokens, part="decoder")
    shapes |= linear("encoder.patch_embed", encoder, 3, 16, 16) | linear("decoder.decoder_embed", decoder, token_dim)
    shapes |= linear("encoder.conv_out", token_dim if size else 2 * token_dim, encoder, 1, 1)
    shapes |= {"quantize.embedding.weight": entries} if size else {}
    if legacy:
        shapes |= linear("decoder.ffn.0", 2 * decoder, decoder, 1, 1) | linear("decoder.ffn.2", 1024, 2 * decoder, 1, 1)
        shapes |= pixel_layout()
    else:
        shapes |= linear("decoder.ffn.0", 768, decoder, 1, 1) | linear("decoder.conv_out", 3, 3, 3, 3)
        shapes |= {"quantize.embed_prob": (size,)} if size else {}
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with torch.device("meta"):
        model = store.build_model(load_recipe(f"imagenet256/{recipe}").model)
    ours = from_published(state)[0]
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert {k: v.shape for k, v in to_published(ours).items()} == {k: v.shape for k, v in state.items()}


@pytest.mark.parametrize("kind", ["vq", "legacy"])
def test_the_command_makes_a_folder_that_loads(tmp_path: Path, kind: str) -> None:
    model = tokenizer(kind)
    publish(model, tmp_path)
    folder = convert("titok", tmp_path, tmp_path / "ours", ["encoder_heads=2", "decoder_heads=3"])
    loaded, images = store.load(folder), torch.rand(1, 3, 16, 16)
    ids = model.encode(images)
    assert loaded.config == model.config and torch.equal(loaded.encode(images), ids)
    assert torch.equal(loaded.decode(ids), model.decode(ids))


@pytest.mark.parametrize("kind", ["vq", "legacy", "vae"])
def test_a_single_file_gives_the_same_configuration(tmp_path: Path, kind: str) -> None:
    model = tokenizer(kind)
    torch.save(to_published(model.state_dict()), tmp_path / "tokenizer.bin")
    found = convert_titok(tmp_path / "tokenizer.bin", **HEADS)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(found.encode(images), model.encode(images))
    (tmp_path / "tokenizer.bin").rename(tmp_path / "pytorch_model.bin")
    assert torch.equal(convert_titok(tmp_path, **HEADS).encode(images), model.encode(images))


@pytest.mark.parametrize(
    "prefix", ["module.", "ema_model.", "ema.", "model.", "module._orig_mod.", "ema_model.module."]
)
def test_wrappers_of_names_are_stripped(tmp_path: Path, prefix: str) -> None:
    model = tokenizer("legacy")
    state = to_published(model.state_dict())
    torch.save({f"{prefix}{name}": value for name, value in state.items()}, tmp_path / "file.pt")
    found = convert_titok(tmp_path / "file.pt", **HEADS)
    assert torch.equal(found.encoder.queries, model.encoder.queries)


def test_what_only_training_reads_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = publish(tokenizer("legacy"), tmp_path)
    extra = {"quantize.embed_prob": torch.zeros(7), "discriminator.block_in.0.bias": torch.zeros(1)}
    save_file({**state, **extra}, tmp_path / "model.safetensors")
    convert_titok(tmp_path, **HEADS)
    reported = capsys.readouterr().err
    assert "left out: 2 (discriminator.block_in.0.bias, quantize.embed_prob)" in reported


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("vq", {"quantize.embedding.weight": None}, "quantize.embedding.weight is missing"),
        ("vq", {"latent_tokens": None}, "latent_tokens is missing"),
        ("vq", {"decoder.conv_out.bias": None}, r"weights missing: 1 \(decoder.conv_out.bias\)"),
        (
            "legacy",
            {"pixel_decoder.up.2.upsample_conv.bias": None},
            r"missing: 1 \(pixel_decoder.up.2.upsample_conv.bias\)",
        ),
        ("legacy", {"pixel_quantize.embedding.weight": None}, "pixel_quantize.embedding.weight is missing"),
        ("vq", {"decoder.surprise": torch.zeros(1)}, r"1 \(decoder.surprise\) are not part of a TiTok"),
        ("vq", {"pixel_decoder.conv_in.bias": torch.zeros(1)}, r"1 \(pixel_decoder.conv_in.bias\) are not part"),
        ("vq", {"encoder.transformer.7.ln_1.bias": torch.zeros(16)}, "weights missing: .*encoder.transformer"),
        ("vq", {"decoder.mask_token": torch.zeros(1, 1, 5)}, "1 weights of another shape.*: decoder.mask_token"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(
    tmp_path: Path, kind: str, change: dict[str, Tensor | None], message: str
) -> None:
    state = {**publish(tokenizer(kind), tmp_path), **change}
    save_file({name: value for name, value in state.items() if value is not None}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=message) as error:
        convert_titok(tmp_path, **HEADS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"is_legacy": True}, "config.json says is_legacy=True, the weights say False"),
        ({"num_latent_tokens": 32}, "config.json says num_latent_tokens=32, but the weights have 5"),
        ({"codebook_size": 4096}, "config.json says codebook_size=4096, but the weights have 7"),
    ],
)
def test_a_configuration_of_another_model_is_reported(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    publish(tokenizer("vq"), tmp_path)
    rewrite(tmp_path, **options)
    with pytest.raises(WeightsError, match=message) as error:
        convert_titok(tmp_path, **HEADS)
    assert "\n" not in str(error.value)


def test_unknown_widths_need_their_heads(tmp_path: Path) -> None:
    publish(tokenizer("vq"), tmp_path)
    with pytest.raises(WeightsError, match="do not determine the attention heads of width 16: give encoder_heads"):
        convert_titok(tmp_path)
    with pytest.raises(WeightsError, match=r"encoder\.heads|heads: 5 does not divide dim 16"):
        convert_titok(tmp_path, encoder_heads=5, decoder_heads=3)


def test_the_unit_sphere_can_be_given(tmp_path: Path) -> None:
    publish(tokenizer("vq"), tmp_path)
    assert not convert_titok(tmp_path, **HEADS).config.bottleneck.l2  # type: ignore[union-attr]
    assert convert_titok(tmp_path, **HEADS, l2=True).config.bottleneck.l2  # type: ignore[union-attr]
    rewrite(tmp_path, use_l2_norm=True)
    assert convert_titok(tmp_path, **HEADS).config.bottleneck.l2  # type: ignore[union-attr]


def test_the_weight_of_the_commitment_can_be_given(tmp_path: Path) -> None:
    publish(tokenizer("vq"), tmp_path)
    rewrite(tmp_path, commitment_cost=0.5)
    assert convert_titok(tmp_path, **HEADS).config.bottleneck.beta == 0.5  # type: ignore[union-attr]
    assert convert_titok(tmp_path, **HEADS, beta=0.0).config.bottleneck.beta == 0.0  # type: ignore[union-attr]


def test_the_weight_of_the_bottleneck_in_stage_one(tmp_path: Path) -> None:
    model = tokenizer("legacy stage one")
    publish(model, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["losses"]["quantizer_weight"] = 0.5
    (tmp_path / "config.json").write_text(json.dumps(content))
    found = {weight: convert_titok(tmp_path, **HEADS, quantizer_weight=weight) for weight in (None, 1.0, 0.0)}
    assert [each.config.quantizer_weight for each in found.values()] == [0.5, 1.0, 0.0]  # type: ignore[union-attr]
    side = 16 // model.config.decoder.patch
    batch = (torch.rand(2, 3, 16, 16), None, torch.zeros(2, side**2, dtype=torch.long))
    half, whole, none = (each.losses(batch, 0.0) for each in found.values())
    assert half["loss_code"] == whole["loss_code"] == none["loss_code"]
    for name in ("loss_vq", "loss_commit"):
        assert 2 * half[name] == whole[name] > 0 == none[name]
    publish(tokenizer("vq"), tmp_path)
    with pytest.raises(WeightsError, match="quantizer_weight: expected none, because this model has one stage"):
        convert_titok(tmp_path, **HEADS, quantizer_weight=0.5)


def test_a_broken_configuration_is_reported(tmp_path: Path) -> None:
    publish(tokenizer("vq"), tmp_path)
    for text, message in (("{", r"config\.json: not JSON"), ("[]", "expected a mapping of options, got a list")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(WeightsError, match=message):
            convert_titok(tmp_path, **HEADS)

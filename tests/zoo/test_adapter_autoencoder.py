"""Autoencoders from weights alone, and published tokenizers that decode into their latents."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tok1d.errors import WeightsError
from tok1d.nn.position import sincos_2d
from tok1d.tokenizers.latent_space import EMBEDDED, Autoencoder, LatentConfig, Pixels
from tok1d.tokenizers.query_encoder import EncoderConfig
from tok1d.tokenizers.semanticist import Semanticist, SemanticistConfig
from tok1d.tokenizers.token_dit import DecoderConfig
from tok1d.zoo import store
from tok1d.zoo.adapters.autoencoder import MAR_SCALE, from_mar, load_mar, network_config, to_mar
from tok1d.zoo.adapters.semanticist import convert_tokenizer
from tok1d.zoo.adapters.semanticist_names import to_published
from tok1d.zoo.card import Card
from tok1d.zoo.convert import convert
from tok1d.zoo.pretrained.autoencoder import read_network

State = dict[str, Tensor]
KL16 = {
    "block_out_channels": [128, 128, 256, 256, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4 + ["AttnDownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"] * 5,
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 32,
}
TINY = {
    "block_out_channels": [4, 8],
    "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "latent_channels": 5,
    "norm_num_groups": 2,
    "scaling_factor": MAR_SCALE,
}


def autoencoder(config: dict[str, Any], device: str = "cpu") -> Any:
    from diffusers import AutoencoderKL

    with torch.device(device):
        return AutoencoderKL(**config).eval()


@pytest.fixture(scope="module")
def tiny() -> Any:
    torch.manual_seed(0)
    return autoencoder(TINY)


def test_the_names_of_the_whole_kl16_are_renamed_one_to_one() -> None:
    network = autoencoder(KL16, "meta")
    assert sum(p.numel() for p in network.parameters()) == 66_456_019
    state = network.state_dict()
    published = to_mar(state)
    assert len(published) == len(state) == 312
    back = from_mar(published)
    assert {name: value.shape for name, value in back.items()} == {name: value.shape for name, value in state.items()}
    for theirs, ours in {
        "encoder.down.2.block.0.nin_shortcut.weight": "encoder.down_blocks.2.resnets.0.conv_shortcut.weight",
        "encoder.down.4.attn.1.proj_out.bias": "encoder.down_blocks.4.attentions.1.to_out.0.bias",
        "encoder.norm_out.weight": "encoder.conv_norm_out.weight",
        "decoder.mid.block_2.norm1.bias": "decoder.mid_block.resnets.1.norm1.bias",
        "decoder.up.4.upsample.conv.weight": "decoder.up_blocks.0.upsamplers.0.conv.weight",
        "decoder.up.0.block.2.conv2.weight": "decoder.up_blocks.4.resnets.2.conv2.weight",
    }.items():
        assert published.keys() >= {theirs} and from_mar(published).keys() >= {ours}
        assert published[theirs].shape == state[ours].shape
    assert published["decoder.mid.attn_1.q.weight"].shape == (512, 512, 1, 1)


@pytest.mark.parametrize("config", [KL16, TINY], ids=["kl16", "tiny"])
def test_weights_give_the_configuration(config: dict[str, Any]) -> None:
    network = autoencoder(config, "meta")
    found = network_config(network.state_dict(), groups=config["norm_num_groups"])
    assert {name: found[name] for name in config} == config and found["scaling_factor"] == 0.2325
    same = autoencoder(found, "meta")
    assert {n: p.shape for n, p in same.state_dict().items()} == {n: p.shape for n, p in network.state_dict().items()}


def test_without_attention_in_the_encoder_the_scale_is_stable_diffusions() -> None:
    state = autoencoder({**TINY, "down_block_types": ["DownEncoderBlock2D"] * 2}, "meta").state_dict()
    found = network_config(state, groups=2)
    assert "scaling_factor" not in found and autoencoder(found, "meta").config.scaling_factor == 0.18215
    assert network_config(state, groups=2, scaling_factor=0.5)["scaling_factor"] == 0.5


def assert_same_function(left: Any, right: Any) -> None:
    x = torch.rand(1, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        latents = left.encode(x).latent_dist.mode()
        torch.testing.assert_close(right.encode(x).latent_dist.mode(), latents)
        torch.testing.assert_close(right.decode(latents).sample, left.decode(latents).sample)
    assert left.config.scaling_factor == right.config.scaling_factor


def test_mars_file_is_read_in_both_forms(tiny: Any, tmp_path: Path) -> None:
    state = {name: value.contiguous() for name, value in to_mar(tiny.state_dict()).items()}
    save_file(state, tmp_path / "kl16.safetensors")
    torch.save({"model": {**state, "loss.logvar": torch.zeros(1)}, "epoch": 3}, tmp_path / "kl16.ckpt")
    for name in ("kl16.safetensors", "kl16.ckpt"):
        assert_same_function(tiny, load_mar(tmp_path / name, groups=2))


@pytest.mark.parametrize(
    "change, groups, message",
    [
        (
            lambda state: state.pop("decoder.up.1.block.0.conv1.bias"),
            2,
            "missing: 1 .*up_blocks.0.resnets.0.conv1.bias",
        ),
        (lambda state: state.pop("encoder.conv_in.weight"), 2, "not a whole KL autoencoder"),
        (lambda state: state.update(other=torch.zeros(1)), 2, "1 names such as other"),
        (lambda state: state.clear() or state.update({"loss.x": torch.zeros(1)}), 2, "got no weights"),
        (lambda state: None, 32, "32 groups of a norm do not divide"),
    ],
    ids=["missing", "no input", "unexpected", "nothing", "groups"],
)
def test_files_that_are_no_such_autoencoder(tiny: Any, tmp_path: Path, change, groups: int, message: str) -> None:
    state = {name: value.contiguous() for name, value in to_mar(tiny.state_dict()).items()}
    change(state)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=message) as caught:
        load_mar(tmp_path / "x.safetensors", groups=groups)
    assert "\n" not in str(caught.value)


def test_convert_writes_mars_file_as_a_diffusers_folder(tiny: Any, tmp_path: Path, monkeypatch) -> None:
    state = {name: value.contiguous() for name, value in to_mar(tiny.state_dict()).items()}
    save_file(state, tmp_path / "kl16.safetensors")
    convert("kl16", tmp_path / "kl16.safetensors", tmp_path / "out", ["groups=2"])
    space = Autoencoder(LatentConfig("autoencoder", str(tmp_path / "out"), 5, 2))
    space.reader = read_network
    assert_same_function(tiny, space.load())

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tiny), "save_pretrained", fail)
    with pytest.raises(WeightsError, match="No space left"):
        convert("kl16", tmp_path / "kl16.safetensors", tmp_path / "other", ["groups=2"])
    assert sorted(os.listdir(tmp_path)) == ["kl16.safetensors", "out"]


# Tokenizers.


def tokenizer(channels: int = 5, factor: int = 2) -> Semanticist:
    torch.manual_seed(1)
    model = Semanticist(
        SemanticistConfig(
            image_size=4 * factor,
            num_tokens=3,
            token_dim=4,
            encoder=EncoderConfig(patch=2 * factor, dim=8, depth=1, heads=2),
            decoder=DecoderConfig(patch=2, dim=8, depth=1, heads=2),
            latents=LatentConfig("autoencoder", "not/read", channels, factor),
        )
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def published(model: Semanticist, vae: Any = None) -> State:
    """What the release's raw file holds: names of ours, the position table, and the autoencoder where it is given."""
    inside = {} if vae is None else {f"vae.{name}": value for name, value in vae.state_dict().items()}
    return {**to_published(model.state_dict()), "dit.pos_embed": sincos_2d(8, 2, 2)[None], **inside}


HEADS = {"encoder_heads": 2, "decoder_heads": 2}


def test_an_autoencoder_inside_the_file_travels_with_the_model(tiny: Any, tmp_path: Path, monkeypatch) -> None:
    original = tokenizer()
    save_file(published(original, tiny), tmp_path / "step.safetensors")
    convert(
        "semanticist-tokenizer",
        tmp_path / "step.safetensors",
        tmp_path / "model",
        ["encoder_heads=2", "decoder_heads=2", "autoencoder_groups=2"],
    )
    (tmp_path / "step.safetensors").unlink()
    shutil.move(tmp_path / "model", tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    model = store.load("moved")
    assert model.config.latents == LatentConfig("autoencoder", EMBEDDED, 5, 2)
    assert model.config.image_size == 8
    assert_same_function(tiny, model.latent_space.load())

    original.latent_space.use(tiny)
    images = torch.rand(2, 3, 8, 8)
    tokens = model.encode(images)
    torch.testing.assert_close(tokens, original.encode(images))
    torch.testing.assert_close(model.decode(tokens, steps=2), original.decode(tokens, steps=2))

    # and it goes on travelling when the model is written again
    store.save_model(model, tmp_path / "again", Card(), dtype=torch.float16)
    shutil.rmtree(tmp_path / "moved")
    assert_same_function(tiny, store.load(tmp_path / "again").latent_space.load())


def test_a_step_directory_gives_averages_and_its_autoencoder(tiny: Any, tmp_path: Path) -> None:
    raw, averaged = tokenizer(), tokenizer()
    nn.init.zeros_(raw.encoder.queries)
    state = published(raw, tiny)
    save_file(
        {name.replace("vae.", "vae._orig_mod."): value for name, value in state.items()}, tmp_path / "model.safetensors"
    )
    torch.save(to_published(averaged.state_dict()), tmp_path / "custom_checkpoint_1.pkl")
    model = convert_tokenizer(tmp_path, **HEADS, autoencoder_groups=2, autoencoder_scale=0.7)
    assert torch.equal(model.encoder.queries, averaged.encoder.queries)
    network = model.latent_space.load()
    assert network.config.scaling_factor == 0.7
    assert torch.equal(network.decoder.conv_in.weight, tiny.decoder.conv_in.weight)


def test_a_given_autoencoder_goes_before_the_one_inside(tiny: Any, tmp_path: Path, monkeypatch) -> None:
    tiny.save_pretrained(tmp_path / "vae")
    save_file(published(tokenizer(), tiny), tmp_path / "x.safetensors")
    monkeypatch.chdir(tmp_path)
    model = convert_tokenizer("x.safetensors", **HEADS, autoencoder="vae")
    # whole, so that the model can be used from elsewhere
    assert model.config.latents == LatentConfig("autoencoder", str(tmp_path / "vae"), 5, 2)
    with pytest.raises(WeightsError, match="no such file or folder"):
        convert_tokenizer("x.safetensors", **HEADS, autoencoder="./absent")


def offline(name: str, file: str) -> None:
    raise OSError("no network")


def test_the_published_autoencoder_is_the_default_for_16_channels(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    save_file(published(tokenizer(16, 16)), tmp_path / "x.safetensors")
    model = convert_tokenizer(tmp_path / "x.safetensors", **HEADS)
    assert model.config.latents == LatentConfig("autoencoder", "xwen99/mar-vae-kl16", 16, 16)
    assert model.config.image_size == 64
    assert "no network" in capsys.readouterr().err


def refused(state: State, tmp_path: Path, **options: Any) -> str:
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError) as caught:
        convert_tokenizer(tmp_path / "x.safetensors", **HEADS, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tokenizers_whose_autoencoder_is_not_known_are_refused(tiny: Any, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    assert "give autoencoder=" in refused(published(tokenizer()), tmp_path)
    assert "no network" in refused(published(tokenizer()), tmp_path, autoencoder="nobody/has-this")
    assert "no vae.* weights inside" in refused(published(tokenizer()), tmp_path, autoencoder=EMBEDDED)
    # 4 x 4 latents of KL-16, but the weights were trained with another number
    wrong = {**published(tokenizer(16, 16)), "dit.pos_embed": sincos_2d(8, 4, 4)[None]}
    assert "dit.pos_embed has 16 positions" in refused(wrong, tmp_path)
    assert "latents of 16 channels, but" in refused(published(tokenizer(16, 2), tiny), tmp_path, autoencoder_groups=2)


def test_a_decoder_of_three_channels_outputs_pixels_by_default(tmp_path: Path) -> None:
    vae = autoencoder({**TINY, "latent_channels": 3})
    model = tokenizer(3, 2)
    state = {**published(model, vae)}
    assert "positions" in refused(state, tmp_path)
    found = convert_tokenizer(tmp_path / "x.safetensors", **HEADS, autoencoder=EMBEDDED, autoencoder_groups=2)
    assert found.config.latents == LatentConfig("autoencoder", EMBEDDED, 3, 2)
    del state["dit.pos_embed"]
    save_file(state, tmp_path / "y.safetensors")
    assert isinstance(convert_tokenizer(tmp_path / "y.safetensors", **HEADS).latent_space, Pixels)


def test_a_vavae_is_read_with_the_statistics_of_its_channels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = autoencoder({**TINY, "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]})
    names = to_mar(network.state_dict())  # the stand-in of f16d32: attention at the lowest level on both sides
    assert {"encoder.down.1.attn.0.q.weight", "decoder.up.1.attn.1.q.weight", "quant_conv.weight"} < names.keys()
    training = {"loss.logvar": 0, "linear_proj.weight": 1, "foundation_model.model.norm.bias": 2}
    state = {**names, **{name: torch.zeros(value) for name, value in training.items()}}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "vavae.pt")
    mean, std = torch.randn(1, 5, 1, 1), torch.rand(1, 5, 1, 1) + 0.5
    torch.save({"mean": mean, "std": std}, tmp_path / "latents_stats.pt")
    options = ["groups=2", f"statistics={tmp_path / 'latents_stats.pt'}"]
    convert("vavae", tmp_path / "vavae.pt", tmp_path / "out", options)
    space = Autoencoder(LatentConfig("autoencoder", str(tmp_path / "out"), 5, 2, sample=False))
    space.reader = read_network
    images = torch.rand(2, 3, 8, 8)
    raw, latents = network.encode(2 * images - 1).latent_dist.mean.detach(), space.encode(images)
    torch.testing.assert_close(latents, (raw - mean) / std)
    torch.testing.assert_close(space.decode(latents), (network.decode(raw).sample + 1) / 2, atol=1e-5, rtol=1e-4)
    convert("vavae", tmp_path / "vavae.pt", tmp_path / "plain", ["groups=2"])
    plain = Autoencoder(LatentConfig("autoencoder", str(tmp_path / "plain"), 5, 2, sample=False))
    plain.reader = read_network
    torch.testing.assert_close(plain.encode(images), raw)
    torch.save({"mean": mean[:, :4], "std": std}, tmp_path / "latents_stats.pt")
    with pytest.raises(WeightsError, match="expected mean of 5 latent channels, got 4 numbers"):
        convert("vavae", tmp_path / "vavae.pt", tmp_path / "wrong", options)
    assert not (tmp_path / "wrong").exists()

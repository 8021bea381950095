"""Latents of a frozen autoencoder: its own scale, posterior samples, no part of the model, errors of one line."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tok1d.config.fields import build_config
from tok1d.errors import ConfigError, WeightsError
from tok1d.tokenizers import latent_space
from tok1d.tokenizers.latent_space import Autoencoder, LatentConfig, Pixels
from tok1d.tokenizers.query_encoder import EncoderConfig
from tok1d.tokenizers.semanticist import Semanticist, SemanticistConfig
from tok1d.tokenizers.token_dit import DecoderConfig
from tok1d.train.ema import EMA
from tok1d.zoo.pretrained.autoencoder import locate, read_network
from tok1d.zoo.store import build_model

CHANNELS, FACTOR, SCALE, SHIFT = 5, 2, 0.4, 0.3
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny AutoencoderKL as diffusers saves it, with standard deviations far from 1."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        latent_channels=CHANNELS,
        scaling_factor=SCALE,
        shift_factor=SHIFT,
    )
    with torch.no_grad():
        vae.quant_conv.bias[CHANNELS:] = torch.linspace(-3, 1, CHANNELS)
    path = tmp_path_factory.mktemp("vae") / "tiny"
    vae.save_pretrained(path)
    return path


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def space(folder: Path | str, *, image_channels: int = 3, **changes: Any) -> Autoencoder:
    made = Autoencoder(LatentConfig(**{**settings(folder), **changes}), image_channels)
    made.reader = read_network
    return made


def built(folder: Path | str) -> Semanticist:
    model = build_model(config(folder))
    assert isinstance(model, Semanticist)
    return model


def settings(folder: Path | str) -> dict[str, Any]:
    return {"space": "autoencoder", "path": str(folder), "channels": CHANNELS, "factor": FACTOR}


def config(folder: Path | str, **changes: Any) -> SemanticistConfig:
    return SemanticistConfig(
        image_size=8,
        num_tokens=3,
        token_dim=4,
        encoder=EncoderConfig(patch=4, dim=8, depth=1, heads=2),
        decoder=DecoderConfig(patch=2, dim=8, depth=1, heads=2),
        steps=2,
        latents=LatentConfig(**{**settings(folder), **changes}),
    )


def test_scale_and_shift_are_those_of_the_networks_own_config(folder: Path, images: Tensor) -> None:
    ours, vae = space(folder, sample=False), read_network(str(folder))
    with torch.no_grad():
        mode = vae.encode(images * 2 - 1).latent_dist.mode()
        decoded = vae.decode(mode).sample
    latents = ours.encode(images)
    torch.testing.assert_close(latents, (mode - SHIFT) * SCALE)
    torch.testing.assert_close(ours.decode(latents), (decoded + 1) / 2)


def test_large_batches_go_through_in_parts(folder: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = space(folder, sample=False)
    whole = ours.encode(images)
    decoded = ours.decode(whole)
    monkeypatch.setattr(latent_space, "CHUNK", 2)
    torch.testing.assert_close(ours.encode(images), whole)
    torch.testing.assert_close(ours.decode(whole), decoded)


def test_samples_have_the_posteriors_mean_and_standard_deviation(folder: Path, images: Tensor) -> None:
    ours, num = space(folder), 1000
    mean, logvar = ours.posterior(images)
    one = [value[:1] for value in (mean, logvar)]
    ours.posterior = lambda images: tuple(value.expand(num, -1, -1, -1) for value in one)  # type: ignore
    sampled = ours.encode(images, generator=torch.Generator().manual_seed(0)) / SCALE + SHIFT
    std = (one[1] / 2).exp()
    assert std.max() > 4 * std.min()
    error = ((sampled.mean(0) - one[0]) / std).abs().max()
    assert error < 5 / num**0.5  # five standard errors
    torch.testing.assert_close(sampled.std(0), std[0], rtol=5 / (2 * num) ** 0.5, atol=0)


def test_given_noise_and_generators_decide_the_sample(folder: Path, images: Tensor) -> None:
    ours = space(folder)
    mean, logvar = ours.posterior(images)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    expected = (mean + (logvar / 2).exp() * noise - SHIFT) * SCALE
    torch.testing.assert_close(ours.encode(images, noise=noise), expected)
    torch.testing.assert_close(ours.encode(images, generator=torch.Generator().manual_seed(3)), expected)
    torch.testing.assert_close(space(folder, sample=False).encode(images), (mean - SHIFT) * SCALE)


def test_the_network_is_no_part_of_the_model(folder: Path) -> None:
    model = built(folder)
    names = set(model.state_dict())
    parameters = sum(p.numel() for p in model.parameters())
    network = model.latent_space.load()
    assert set(model.state_dict()) == names and sum(p.numel() for p in model.parameters()) == parameters
    inside = {id(p) for p in network.parameters()}
    assert not inside & {id(p) for p in (*model.parameters(), *EMA(model, 0.9).parameters.values())}
    model.train()
    assert not any(module.training for module in network.modules())
    assert not any(p.requires_grad for p in network.parameters())


def test_a_model_is_built_and_counted_without_the_weights() -> None:
    with torch.device("meta"):
        model = Semanticist(config("nobody/has-this"))
    assert model.latent_shape == (CHANNELS, 4, 4)
    assert model.decoder.patch_embed.proj.weight.shape == (8, CHANNELS, 2, 2)


def test_training_reaches_the_encoder_through_constant_latents(folder: Path, images: Tensor) -> None:
    model = built(folder)
    torch.nn.init.normal_(model.decoder.out.weight)
    torch.nn.init.normal_(model.decoder.blocks[0].modulation.linear.weight)
    losses = model.losses((images, torch.zeros(3)), 1.0)
    sum(losses.values()).backward()
    assert model.encoder.queries.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.latent_space.load().parameters())


def test_weights_first_read_in_inference_mode_serve_training_too(folder: Path, images: Tensor) -> None:
    ours = space(folder)
    with torch.inference_mode():
        ours.encode(images)
    weight = torch.ones((), requires_grad=True)
    (weight * ours.encode(images)).square().sum().backward()
    assert weight.grad is not None and not any(p.is_inference() for p in ours.load().parameters())


def test_reading_leaves_the_global_rng_unchanged(folder: Path, images: Tensor) -> None:
    state = torch.get_rng_state()
    ours = space(folder, sample=False)
    ours.encode(images)
    assert torch.equal(torch.get_rng_state(), state)


def test_decoding_tokens_never_encodes(folder: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(folder).eval()
    tokens = model.encode(images)
    expected = model.decode(tokens, keep=2)
    assert expected.shape == images.shape

    def fail(*_: object) -> None:
        raise AssertionError("the autoencoder's encoder ran")

    monkeypatch.setattr(model.latent_space.load(), "encode", fail)
    monkeypatch.setattr(model.latent_space, "encode", fail)
    assert torch.equal(model.decode(model.encode(images), keep=2), expected)


def test_pixels_are_the_default_and_move_to_both_signs(images: Tensor) -> None:
    pixels = Semanticist(SemanticistConfig(encoder=config("").encoder, decoder=config("").decoder)).latent_space
    assert isinstance(pixels, Pixels) and pixels.factor == 1
    torch.testing.assert_close(pixels.decode(pixels.encode(images)), images)
    assert pixels.encode(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-1, 0, 1]


def test_a_relative_path_is_looked_for_in_the_models_folder_first(folder: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(folder, tmp_path / "model" / "autoencoder")
    ours = space("autoencoder")
    ours.base = tmp_path / "model"
    assert ours.load().config.latent_channels == CHANNELS
    monkeypatch.chdir(folder.parent)
    assert space("tiny").load().config.latent_channels == CHANNELS
    # a model's folder stands for the autoencoder inside it
    assert space(tmp_path / "model").load().config.latent_channels == CHANNELS


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"latents": {"space": "autoencoder", "path": "a/b", "channels": 4}},
            "latents.factor: expected a value with space=autoencoder",
        ),
        (
            {"latents": {"space": "autoencoder", "channels": 4, "factor": 8}},
            "latents.path: expected a value with space=autoencoder",
        ),
        ({"latents": {"path": "a/b"}}, "latents.path: expected null without space=autoencoder"),
        ({"image_size": 36, "encoder.patch": 12}, "latents.factor: 8 does not divide image_size 36"),
        ({"image_size": 40, "encoder.patch": 8}, "decoder.patch: 2 does not divide image_size / latents.factor = 5"),
    ],
)
def test_contradictions_are_one_line(changes: dict[str, Any], message: str) -> None:
    tree: dict[str, Any] = {"latents": {"space": "autoencoder", "path": "a/b", "channels": 4, "factor": 8}}
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        tree.update({section: {name: value}} if section else {key: value})
    with pytest.raises(ConfigError, match=message) as caught:
        build_config(SemanticistConfig, tree)
    assert "\n" not in str(caught.value)


def refused(match: str, ours: Autoencoder) -> None:
    with pytest.raises(WeightsError, match=match) as caught:
        ours.load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"channels": 4}, "latents.channels=4 .*, got 5"),
        ({"factor": 4}, "latents.factor=4 .*, got 2"),
    ],
)
def test_another_geometry_than_the_networks_is_reported(folder: Path, changes: dict[str, int], message: str) -> None:
    refused(message, space(folder, **changes))


def test_grey_images_do_not_enter_an_autoencoder_of_colour(folder: Path) -> None:
    refused("channels=1 .*, got 3", space(folder, image_channels=1))


def test_a_missing_autoencoder_is_reported(tmp_path: Path) -> None:
    refused("no such file or folder", space(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    refused("no diffusers folder", space(tmp_path / "empty"))


def test_an_unreachable_hub_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, file: str) -> None:
        raise OSError(f"no network for {name}\nsecond line")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    refused("autoencoder nobody/has-this: .* nor on the hub .no network", space("nobody/has-this"))


def test_without_diffusers_the_remedy_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    refused("pip install 'tok1d.diffusers.'", space(folder))


@pytest.mark.parametrize("name", ["owner/model", "owner/model-v1.5"])
def test_a_name_of_two_words_is_the_hubs_unless_it_is_a_file(name: str) -> None:
    assert locate(name) is None
    with pytest.raises(WeightsError, match="no such file or folder"):
        locate(f"{name}.safetensors")


def altered(folder: Path, to: Path, change: Callable[[Path], None]) -> Autoencoder:
    shutil.copytree(folder, to)
    change(to)
    return space(to)


def test_another_kind_of_network_is_reported(folder: Path, tmp_path: Path) -> None:
    def rename(to: Path) -> None:
        content = json.loads((to / "config.json").read_text())
        (to / "config.json").write_text(json.dumps({**content, "_class_name": "VQModel"}))

    refused(
        "expected a diffusers AutoencoderKL, its config.json is of VQModel", altered(folder, tmp_path / "x", rename)
    )


def test_a_missing_weight_is_never_initialised_at_random(folder: Path, tmp_path: Path) -> None:
    def drop(to: Path) -> None:
        state = {name: value.clone() for name, value in load_file(to / WEIGHTS).items()}
        del state["decoder.conv_in.weight"]
        save_file(state, to / WEIGHTS)

    refused("1 missing weights such as decoder.conv_in.weight", altered(folder, tmp_path / "x", drop))


def test_damaged_weights_are_reported(folder: Path, tmp_path: Path) -> None:
    ours = altered(folder, tmp_path / "x", lambda to: (to / WEIGHTS).write_bytes(b"12345678"))  # type: ignore
    refused("its weights cannot be read", ours)


def test_an_unused_network_is_reported(folder: Path) -> None:
    model = Semanticist(config(folder))
    with pytest.raises(WeightsError, match=r"expected a network, got none; build the model by tok1d\.load") as caught:
        model.latent_space.load()
    assert "\n" not in str(caught.value)
    model.latent_space.use(read_network(str(folder)))
    assert model.latent_space.load().config.latent_channels == CHANNELS

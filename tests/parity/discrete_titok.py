"""TiTok's and TA-TiTok's recorded cases, run through tok1d's classes. RUNNERS maps a case's kind to its function."""

from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tok1d.bottleneck.kl import KL
from tok1d.bottleneck.vq import VQ
from tok1d.losses.adversarial import LeCam, hinge_d_loss, linear_g_loss
from tok1d.tokenizers.titok import TiTok
from tok1d.zoo.adapters.discriminator import blur_patch_from_published
from tok1d.zoo.adapters.titok import convert_titok
from tok1d.zoo.compat.titok import LegacyTiTok

from .recorded import Case

RUNNERS: dict[str, Callable[[Case], None]] = {}


def runs(*kinds: str, inputs: tuple[str, ...]) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Register a function for kinds of cases; whatever else than `inputs` is recorded has to be compared."""

    def register(function: Callable[[Case], None]) -> Callable[[Case], None]:
        def run(case: Case) -> None:
            case.unchecked = case.io.keys() - set(inputs)
            function(case)

        RUNNERS.update(dict.fromkeys(kinds, run))
        return function

    return register


def published_tokenizer(case: Case) -> Any:
    """The recorded tokenizer, through the adapter; case.json gives what a weight file alone does not tell."""
    heads = case.config["heads"]
    l2 = case.config["use_l2_norm"]
    losses = {"beta": case.config.get("commitment_cost"), "quantizer_weight": case.config.get("quantizer_weight")}
    model = convert_titok(case.weights, encoder_heads=heads, decoder_heads=heads, l2=l2, **losses)
    config = model.config
    assert (config.image_size, config.num_tokens) == (case.config["image_size"], case.config["num_latent_tokens"])
    assert (config.encoder.depth, config.decoder.depth) == (case.config["layers"],) * 2
    assert isinstance(model, LegacyTiTok) == case.config["is_legacy"]
    return model


def as_map(tokens: Tensor) -> Tensor:
    """(B, L, ...) -> (B, ..., 1, L), the order in which tokens are recorded."""
    return tokens.movedim(1, -1).unsqueeze(-2)


def size_of(case: Case) -> tuple[int, int]:
    height, width = case.io["image"].shape[-2:]
    return height, width


def check_codes(case: Case, model: Any, states: Tensor, *, losses: bool = True) -> Tensor:
    """Latents, ids, entries and losses of the encoder's states (B, L, dim); returns the entries (B, L, C)."""
    vq = model.bottleneck
    assert isinstance(vq, VQ)
    z = vq.proj(states)
    entries, ids, terms = vq.quantise(z)
    case.check("latents", as_map(z))
    case.check("indices", ids[:, None])
    case.check("quantized", as_map(entries))
    assert torch.equal(ids, model.encode(case.io["image"]))
    if losses:
        case.check("codebook_loss", terms["loss_vq"])
        case.check("commitment_loss", terms["loss_commit"])
        case.check("quantizer_loss", terms["loss_vq"] + terms["loss_commit"])  # before its weight
    return entries


@runs("titok_vq", inputs=("image",))
def run_vq(case: Case) -> None:
    model, io = published_tokenizer(case), case.io
    assert isinstance(model, TiTok) and model.config.bottleneck.beta == case.config["commitment_cost"]
    entries = check_codes(case, model, model.encoder(io["image"]))
    case.check("reconstruction", model.decoder.decode(entries, size_of(case)))
    case.check("decoded_from_indices", model.decoder.decode(model.bottleneck.embed(io["indices"][:, 0]), size_of(case)))
    torch.testing.assert_close(model.decode(io["indices"][:, 0]), io["decoded_from_indices"].clamp(0, 1))


@runs("tatitok_vq", inputs=("image", "text"))
def run_text(case: Case) -> None:
    model, io = published_tokenizer(case), case.io
    assert (model.config.text_length, model.config.text_dim) == (
        case.config["text_context_length"],
        case.config["text_embed_dim"],
    )
    entries = check_codes(case, model, model.encoder(io["image"]), losses=False)
    case.check("reconstruction", model.decoder.decode(entries, size_of(case), io["text"]))
    decoded = model.decode(io["indices"][:, 0], io["text"])
    torch.testing.assert_close(decoded, io["reconstruction"].clamp(0, 1), atol=2e-5, rtol=2e-5)


@runs("titok_vae", inputs=("image", "noise"))
def run_vae(case: Case) -> None:
    model, io = published_tokenizer(case), case.io
    assert isinstance(model.bottleneck, KL)
    states = model.encoder(io["image"])
    posterior = model.bottleneck.posterior(states)
    noise = io["noise"].squeeze(2).transpose(1, 2)
    sample, terms = model.bottleneck(states, noise)
    case.check("parameters", as_map(model.bottleneck.proj(states)))
    case.check("mean", as_map(posterior.mean))
    case.check("logvar", as_map(posterior.logvar))
    case.check("sample", as_map(sample))
    # Recorded for every token; ours is their sum.
    mean, logvar = posterior.mean, posterior.logvar
    case.check("kl", (mean.square() + logvar.exp() - 1 - logvar).sum(-1) / 2)
    torch.testing.assert_close(posterior.kl(), io["kl"].sum(1))
    case.check("kl_batch", terms["loss_kl"] / model.bottleneck.weight)
    case.check("reconstruction", model.decoder.decode(sample, size_of(case)))
    case.check("reconstruction_mode", model.decoder.decode(model.encode(io["image"]), size_of(case)))


@runs("titok_vq_legacy_stage1", inputs=("image", "proxy_codes"))
def run_stage_one(case: Case) -> None:
    model, io = published_tokenizer(case), case.io
    assert isinstance(model, LegacyTiTok) and model.config.stage == "train"
    entries = check_codes(case, model, model.states(io["image"]))
    side = model.config.image_size // model.config.decoder.patch

    def logits(tokens: Tensor) -> Tensor:
        return model.decoder.logits(tokens, (side, side)).transpose(1, 2).unflatten(2, (side, side))

    case.check("reconstruction", logits(entries))
    case.check("decoded_from_indices", logits(model.bottleneck.embed(io["indices"][:, 0])))
    terms = model.losses((io["image"], None, io["proxy_codes"]), 0.0)
    case.check("stage1_reconstruction_loss", terms["loss_code"])
    case.check("stage1_loss", sum(value for name, value in terms.items() if name.startswith("loss_")))


@runs("titok_stage2", inputs=("image",))
def run_stage_two(case: Case) -> None:
    model, io = published_tokenizer(case), case.io
    config = model.config
    shrunk = case.config["pixel_decoder"]
    assert config.stage == "finetune" and config.pixels.blocks == shrunk["num_res_blocks"]
    widths = [shrunk["hidden_channels"] * mult for mult in shrunk["channel_mult"]]
    assert [config.pixels.width * mult for mult in config.pixels.mult] == widths
    entries = check_codes(case, model, model.states(io["image"]), losses=False)
    side = config.image_size // config.decoder.patch
    logits = model.decoder.logits(entries, (side, side))
    case.check("proxy_logits", logits.transpose(1, 2).unflatten(2, (side, side)))
    case.check("pixel_latent", model.decoder.expected_codes(logits, (side, side)))
    case.check("reconstruction", model.decoder.decode(entries, size_of(case)))
    case.check("decoded_from_indices", model.decoder.decode(model.bottleneck.embed(io["indices"][:, 0]), size_of(case)))
    torch.testing.assert_close(model.decode(io["indices"][:, 0]), io["decoded_from_indices"].clamp(0, 1))
    # The codebook learns nothing in this stage, and its losses are not among the model's.
    assert not any(weight.requires_grad for weight in model.bottleneck.parameters())
    for name in ("codebook_loss", "commitment_loss", "quantizer_loss"):
        case.check(name, torch.zeros(()))


@runs("titok_discriminator", inputs=("real", "fake", "ema_real", "ema_fake"))
def run_discriminator(case: Case) -> None:
    io = case.io
    network = blur_patch_from_published(load_file(case.weights), str(case.weights))
    assert (network.conv_in.out_channels, len(network.convs)) == (
        case.config["hidden_channels"],
        case.config["num_stages"],
    )
    real, fake = network(io["real"]), network(io["fake"])
    case.check("logits_real", real)
    case.check("logits_fake", fake)
    lecam = LeCam(of_means=True)
    lecam.mean_real.copy_(io["ema_real"])
    lecam.mean_fake.copy_(io["ema_fake"])
    case.check("lecam", lecam(real, fake))
    case.check("hinge_d", hinge_d_loss(real, fake))
    case.check("generator", linear_g_loss(fake))

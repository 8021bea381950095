"""MAETok's recorded cases, run through tok1d's classes. RUNNERS maps a case's kind to its function."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file
from torch import Tensor

from tok1d.bottleneck.kl import KL, Posterior
from tok1d.bottleneck.softvq import SoftVQ
from tok1d.bottleneck.vq import VQ
from tok1d.tokenizers.maetok import MAETok
from tok1d.tokenizers.pixel_decoder import HEADS
from tok1d.zoo.adapters.maetok import convert_tokenizer, from_published
from tok1d.zoo.compat.siren import SirenHead

from .recorded import Case, outputs_of

RUNNERS: dict[str, Callable[[Case], None]] = {}


def runs(*kinds: str) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Register a function for kinds of cases."""

    def register(function: Callable[[Case], None]) -> Callable[[Case], None]:
        RUNNERS.update(dict.fromkeys(kinds, function))
        return function

    return register


# Positions, embeddings and averaging.


@runs("embeddings")
def run_embeddings(case: Case) -> None:
    from tok1d.nn.embed import time_rates, time_waves
    from tok1d.nn.position import sincos_2d, sincos_interleaved

    for name, table in case.io.items():
        kind, *sizes = name.split("_")
        if kind == "pos1d":
            case.check(name, sincos_interleaved(*map(int, sizes)))
        elif kind == "pos2d":
            case.check(name, sincos_2d(int(sizes[0]), int(sizes[1]), int(sizes[1])))
        elif name.startswith("t_freq"):
            width = table.shape[1]
            case.check(name, time_waves(case.io["t"], time_rates(width), width))


@runs("rope2d")
def run_rope2d(case: Case) -> None:
    from tok1d.nn.position import axial_angles, grid_coordinates, mixed_angles, mixed_frequencies, rotate

    config, io = case.config, case.io
    columns, rows = grid_coordinates(config["grid_h"], config["grid_w"])
    case.check("t_x", columns)
    case.check("t_y", rows)
    case.check("freqs", mixed_frequencies(config["head_dim"], io["u"], config["theta_mixed"]))
    mixed = mixed_angles(io["freqs"], config["num_heads"], columns, rows)
    axial = axial_angles(config["head_dim"], columns, rows, config["theta_axial"])
    for name, angles, first in (("mixed", mixed, mixed[0]), ("axial", axial, axial)):
        case.check(f"{name}_cos", angles.cos())
        case.check(f"{name}_sin", angles.sin())
        for x in ("q", "k"):
            case.check(f"{x}_{name}", rotate(io[x], first.cos(), first.sin()))


@runs("ema")
def run_ema(case: Case) -> None:
    from torch import nn

    from tok1d.train.ema import EMA

    model = nn.Module()
    model.weight = nn.Parameter(case.io["w0"].clone())
    ema = EMA(model, case.config["decay"], ramp=False)
    for step, weight in enumerate(case.io["steps"]):
        model.weight.data.copy_(weight)
        ema.update(step)
    case.check("w3", torch.as_tensor(ema.state_dict()["weight"]))


# Tokenizers and bottlenecks. Recorded images are in [-1, 1], ours in [0, 1].


def published_tokenizer(case: Case) -> MAETok:
    """The recorded tokenizer, through the adapter: the weights beside their options as a config.json."""
    with TemporaryDirectory() as folder:
        shutil.copyfile(case.weights, f"{folder}/model.safetensors")
        Path(folder, "config.json").write_text(json.dumps(case.config), encoding="utf-8")
        heads = case.config["num_heads"]
        model = convert_tokenizer(folder, encoder_heads=heads, decoder_heads=heads)
    assert model.config.image_size == case.config["image_size"]
    assert model.config.encoder.depth == case.config["depth"]
    return model


def decode(model: MAETok, tokens: Tensor) -> Tensor:
    """The reconstruction in [-1, 1], not clamped."""
    return model.decoder.decode(model.bottleneck.embed(tokens), (model.config.image_size, model.config.image_size))


@runs("ae_ape", "ae_rope_mixed", "ae_rope_reg4")
def run_autoencoder(case: Case) -> None:
    model, io = published_tokenizer(case), case.io
    image = ((io["image"] + 1) / 2).requires_grad_()  # without it, encode computes no gradients in eval mode
    with outputs_of(model.encoder) as states:
        tokens = model.encode(image)
    case.check("latents", tokens)
    case.check("enc_features", states[0])
    case.check("decoded", decode(model, io["z"]))
    recon = decode(model, tokens)
    case.check("recon", recon)
    if "token_mask" in io:
        mask = io["token_mask"].bool()
        case.check("latents_masked", model.reconstruct((image,), 0.0, mask=mask)[1])
    if "enc_rope_cos" in io:
        side = model.encoder.vit.side
        angles = model.encoder.vit.angles(side, side)
        case.check("enc_rope_cos", angles.cos())
        case.check("enc_rope_sin", angles.sin())
    ((recon * io["probe"]).sum() / 10).backward()
    for name in io:
        if name.startswith("grad:"):
            ((ours, _),) = from_published({name.removeprefix("grad:"): io[name]})[0].items()
            gradient = model.get_parameter(ours).grad
            assert gradient is not None, f"no gradient reached {ours}"
            case.check(name, gradient)


@runs("softvq_model")
def run_softvq_model(case: Case) -> None:
    model, image = published_tokenizer(case), (case.io["image"] + 1) / 2
    tokens = model.encode(image)
    case.check("latents", tokens)
    case.check("recon", decode(model, tokens))
    assert isinstance(model.bottleneck, SoftVQ)
    case.check("indices", model.bottleneck.quantise(model.bottleneck.proj(model.encoder(case.io["image"])))[1])


@runs("kl_model")
def run_kl_model(case: Case) -> None:
    model, io = published_tokenizer(case), case.io
    assert isinstance(model.bottleneck, KL)
    states = model.encoder(io["image"])
    posterior = model.bottleneck.posterior(states)
    case.check("mean", posterior.mean)
    case.check("logvar", posterior.logvar)
    sample, terms = model.bottleneck(states, io["eps"])
    case.check("recon_sample", decode(model, sample))
    case.check("kl_loss", terms["loss_kl"])
    case.check("recon_mode", decode(model, model.encode((io["image"] + 1) / 2)))


@runs("kl_dist")
def run_kl_dist(case: Case) -> None:
    posterior = Posterior.of(case.io["moments"])
    case.check("logvar", posterior.logvar)
    case.check("std", posterior.std)
    case.check("sample", posterior.sample(case.io["eps"]))
    case.check("kl_per_sample", posterior.kl())


def check_quantiser(case: Case, model: VQ | SoftVQ, codebook: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Its values, its losses and their gradients; the ids and scalars that differ between kinds are returned."""
    model.codebook.data.copy_(codebook)
    z = case.io["z"].clone().requires_grad_()
    quantised, ids, terms = model.quantise(z)
    case.check("z_q", quantised)
    losses = [terms.get(f"loss_{kind}", torch.zeros(())) for kind in ("vq", "commit", "entropy")]
    for kind, value in zip(("vq", "commit", "entropy"), losses, strict=True):
        if f"{kind}_loss" in case.io:
            case.check(f"{kind}_loss", value)
    (sum(losses) + (quantised * case.io["probe"]).mean()).backward()
    case.check("grad_z", z.grad)
    case.check("grad_codebook", model.codebook.grad)
    return ids, terms


@runs("vq_l20", "vq_l21")
def run_vq(case: Case) -> None:
    config, io = case.config, case.io
    (codebook,) = load_file(case.weights).values()
    options = {"l2": config["l2_norm"], "beta": config["beta"], "entropy": config["entropy_loss_ratio"]}
    model = VQ(1, config["e_dim"], size=config["n_e"], **options)
    ids, _ = check_quantiser(case, model, codebook)
    case.check("indices", ids.flatten())
    case.check("entries", model.embed(io["indices"].view(ids.shape)))


@runs("softvq_l20", "softvq_l21")
def run_softvq(case: Case) -> None:
    config = case.config
    (codebook,) = load_file(case.weights).values()
    options = {"l2": config["l2_norm"], "tau": config["tau"], "entropy": config["entropy_loss_ratio"]}
    model = SoftVQ(1, config["e_dim"], size=config["n_e"], num_codebooks=config["num_codebooks"], **options)
    ids, terms = check_quantiser(case, model, codebook)
    case.check("indices", ids)
    case.check("max_prob", terms["max_weight"])
    case.check("cos", terms["cosine"])


@runs("to_pixel")
def run_to_pixel(case: Case) -> None:
    state, channels = load_file(case.weights), case.config["in_channels"]
    for kind, config in case.checks.items():
        side, dim = config["img_size"] // config["patch_size"], config["in_dim"]
        weights = {k.removeprefix(f"{kind}.model."): v for k, v in state.items() if k.startswith(f"{kind}.")}
        x = case.io[f"{kind}.h"]
        if kind == "siren":
            siren = SirenHead(dim, config["img_size"], channels)
            siren.load_state_dict({f"fc{int(k[0]) + 1}.{k.rpartition('.')[2]}": v for k, v in weights.items()})
            case.check(f"{kind}.pixels", siren(x))
            continue
        head = HEADS[kind](dim, config["patch_size"], channels)
        published = {f"decoder.to_pixel.model.{name}": value for name, value in weights.items()}
        renamed = from_published(published)[0]
        head.load_state_dict({name.removeprefix("decoder.head."): value for name, value in renamed.items()})
        case.check(f"{kind}.pixels", head(x, (side, side)))


# Losses of a tokenizer's training. Recorded images are in [-1, 1], ours in [0, 1].


@runs("gan_losses")
def run_gan_losses(case: Case) -> None:
    from torch.nn import functional as F

    from tok1d.losses.adversarial import LeCam, adaptive_weight, hinge_d_loss, linear_g_loss, logistic_d_loss

    io = case.io
    real, fake = io["logits_real"], io["logits_fake"]
    case.check("hinge_d", hinge_d_loss(real, fake))
    case.check("vanilla_d", logistic_d_loss(real, fake))
    case.check("hinge_g", linear_g_loss(fake))
    # The release's non-saturating losses take the constant as the logits and the logits as the target; ours do not.
    swapped = [F.binary_cross_entropy_with_logits(torch.full_like(x, y), x) for x, y in ((real, 1.0), (fake, 0.0))]
    case.check("nonsat_d_upstream", sum(swapped) / 2)
    case.check("nonsat_g_upstream", F.binary_cross_entropy_with_logits(torch.ones_like(fake), fake))
    lecam = LeCam(case.config["lecam_decay"])
    for step, (real, fake) in enumerate(zip(io["lecam.real"], io["lecam.fake"])):
        lecam.update(real, fake)
        for name, value in (("ema_real", lecam.mean_real), ("ema_fake", lecam.mean_fake), ("reg", lecam(real, fake))):
            case.check(f"lecam.{name}", value, step)
    weight = io["adaptive.weight_last"].clone().requires_grad_()
    out = io["adaptive.h"] @ weight.T
    adversarial = linear_g_loss(out @ io["adaptive.w_disc"])
    case.check("adaptive.value", adaptive_weight(F.mse_loss(out, io["adaptive.target"]), adversarial, weight))


@runs("vqloss_compose")
def run_vqloss_compose(case: Case) -> None:
    from torch import nn
    from torch.nn import functional as F

    from tok1d.losses.adversarial import AdversarialConfig, AdversarialLoss
    from tok1d.losses.perceptual import PerceptualConfig, PerceptualLoss
    from tok1d.nn.embed import unpatchify

    io, state = case.io, load_file(case.weights)

    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(state["disc.conv.weight"]), nn.Parameter(state["disc.conv.bias"])

        def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
            return F.conv2d(images, self.weight, self.bias, stride=self.weight.shape[-1]).flatten(1)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        kernel, bias = state["perc.conv.weight"], state["perc.conv.bias"]
        x, y = (F.conv2d(2 * each - 1, kernel, bias, padding=kernel.shape[-1] // 2) for each in (a, b))
        return (x - y).square().mean((1, 2, 3))

    side, image = math.isqrt(io["h"].shape[1]), io["image"]
    vq, commit, entropy, _, align = io["codebook_losses"]
    for name, config in case.checks.items():
        assert config["disc_loss"] == config["gen_loss"] == "hinge" and config["reconstruction_loss"] == "l2"
        adversarial_loss = AdversarialLoss(
            AdversarialConfig(
                weight=config["disc_weight"],
                start=config["disc_start"],
                adaptive=config["disc_adaptive_weight"],
                lecam=config["lecam_loss_weight"],
                diff_aug=config["use_diff_aug"],
            ),
            Critic(),
        )
        perceptual = PerceptualLoss(
            PerceptualConfig(weight=config["perceptual_weight"], warmup=config["perceptual_warmup"]), distance
        )
        step, last = config["global_step"], state["last.weight"].clone().requires_grad_()
        decoded = unpatchify(F.linear(io["h"], last, state["last.bias"]), image.shape[-1] // side, side, side)
        torch.testing.assert_close(decoded, io["recon"])
        real, fake = (image + 1) / 2, (decoded + 1) / 2
        terms = {"loss_reconstruction": config["rec_weight"] * F.mse_loss(decoded, image)}
        terms |= perceptual.terms(real, fake, step)
        adversarial = adversarial_loss.generator_terms(real, fake, step, last, terms)["loss_adversarial"]
        loss = sum(terms.values()) + adversarial + vq + commit + entropy + align
        loss.backward()
        case.check(f"{name}.gen_loss", loss)
        case.check(f"{name}.gen_grad_last", last.grad)
        losses = adversarial_loss.discriminator_losses(real, fake, step)
        case.check(f"{name}.disc_loss", sum(v for k, v in losses.items() if k.startswith("loss")))


@runs("dino_disc")
def run_dino_discriminator(case: Case) -> None:
    from torch.nn import functional as F

    from tok1d.losses.discriminator import DinoDiscriminator
    from tok1d.zoo.adapters.discriminator import heads_from_published, trunk_from_published

    config, io, state = case.config, case.io, load_file(case.weights)
    parts = [
        {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
        for prefix in ("backbone.", "heads_state.")
    ]
    trunk = trunk_from_published(parts[0], str(case.weights), heads=config["num_heads"])
    depths = [0, *(depth + 1 for depth in config["key_depths"])]
    model = DinoDiscriminator(trunk, image_size=config["input"], depths=depths, kernel_size=config["kernel_size"])
    model.load_state_dict(heads_from_published(parts[1]))
    model.eval()
    for i, found in enumerate(trunk(model.prepare(io["image"]), depths)):
        recorded = io[f"readout{i}"]
        torch.testing.assert_close(found[:1, :, : recorded.shape[-1]], recorded, atol=2e-4, rtol=1e-3)
    case.check("logits_eval", model(io["image"]))
    big = F.interpolate(io["big_seed"], size=(256, 256), mode="bilinear", align_corners=False)
    case.check("logits_eval_256", model(big))
    image = io["image"].clone().requires_grad_()
    logits = model.train()(image)
    case.check("logits_train", logits)
    (-logits.sum()).backward()
    case.check("grad_image", image.grad)
    ours = model.state_dict()
    for name in io:
        if name.startswith("after:"):
            ((key, _),) = heads_from_published({name.removeprefix("after:"): io[name]}).items()
            case.check(name, ours[key])


@runs("lpips_head")
def run_lpips_head(case: Case) -> None:
    from tok1d.losses.perceptual import LPIPS, vgg16
    from tok1d.zoo.adapters.lpips import heads_from_published

    io, levels = case.io, range(len(case.config["channels"]))
    heads = heads_from_published(load_file(case.weights), str(case.weights))
    model = LPIPS(vgg16(case.config["channels"]), heads)
    case.check("a_scaled", model.prepare((io["a"] + 1) / 2))
    distances = model.distance([io[f"fa{i}"] for i in levels], [io[f"fb{i}"] for i in levels])
    case.check("value", distances.view(-1, 1, 1, 1))


@runs("diffaug")
def run_diffaug(case: Case) -> None:
    from tok1d.losses import augment

    io = case.io
    for name, config in case.checks.items():
        if name == "translation":
            changed = augment.translate(io["x"], io[f"{name}.dy"], io[f"{name}.dx"])
        elif name.startswith("cutout"):
            changed = augment.cut_out(io["x"], io[f"{name}.oy"], io[f"{name}.ox"], config["side"])
        else:
            changed = getattr(augment, name)(io["x"], io[f"{name}.u"])
        case.check(name, changed)

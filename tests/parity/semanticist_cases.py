"""Semanticist's recorded cases, run through tok1d's classes. RUNNERS maps a case's kind to its function."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tok1d.bottleneck.normalised import Normalised
from tok1d.diffusion.ddpm import Chain
from tok1d.diffusion.guidance import Guidance, as_guidance
from tok1d.diffusion.path import expand
from tok1d.generators.autoregressive import EpsilonLlamaGen
from tok1d.generators.causal import CachedDecoder
from tok1d.generators.head import DiffusionHead
from tok1d.losses.alignment import resize_tokens
from tok1d.losses.features import Teacher
from tok1d.nn.attention import full, prefix_causal, prefix_causal_mask
from tok1d.tokenizers.latent_space import EMBEDDED, Autoencoder, LatentConfig, geometry
from tok1d.tokenizers.prefix import prefix_mask, resolve_keep
from tok1d.tokenizers.query_encoder import EncoderConfig, QueryEncoder
from tok1d.tokenizers.semanticist import NestedConfig, Semanticist, SemanticistConfig
from tok1d.tokenizers.token_dit import DecoderConfig, TokenDiT
from tok1d.zoo.adapters.autoencoder import load_mar
from tok1d.zoo.adapters.keymap import read_published
from tok1d.zoo.adapters.semanticist import convert_ar, convert_tokenizer, decoder_config, encoder_config, head_config
from tok1d.zoo.adapters.semanticist_names import from_published, load_part, part
from tok1d.zoo.pretrained.autoencoder import read_network

from .recorded import Case, inputs_of, outputs_of, recorded_noise

RUNNERS: dict[str, Callable[[Case], None]] = {}


def runs(*kinds: str) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Register a function for kinds of cases."""

    def register(function: Callable[[Case], None]) -> Callable[[Case], None]:
        RUNNERS.update(dict.fromkeys(kinds, function))
        return function

    return register


def weights(case: Case, prefix: str = "") -> dict[str, Tensor]:
    return from_published(read_published(case.weights), prefix, str(case.weights))


def check_gradients(case: Case, model: nn.Module, prefix: str = "") -> None:
    """Compare the recorded gradients, whose names are published ones, with those of our parameters."""
    for name in case.io:
        if name.startswith("grad."):
            ((ours, _),) = from_published({name.removeprefix("grad."): case.io[name]}, prefix).items()
            gradient = model.get_parameter(ours).grad
            assert gradient is not None, f"no gradient reached {ours}"
            case.check(name, gradient)


# The encoder and the bottleneck.


@runs("encoder_causal", "encoder_noncausal")
def run_encoder(case: Case) -> None:
    state = weights(case, "encoder.")
    config, sizes = encoder_config(state, heads=case.config["heads"], causal=case.config["is_causal"])
    encoder = QueryEncoder(config, **sizes).eval()
    load_part(encoder, state, "encoder.")
    image = case.io["image"]
    case.check("tokens_in", encoder.embed(image))
    with inputs_of(encoder.blocks[0]) as first, inputs_of(encoder.blocks[-1]) as last:
        case.check("slots", encoder(image))
    # The last block computes the tokens alone in the encoder; the recording has the patches too.
    attend = prefix_causal(1 + encoder.num_patches) if config.causal else full
    case.check("block0_out", encoder.blocks[0](first[0], attend))
    case.check("last_block_out", encoder.blocks[-1](last[0], attend))
    if "attn_mask" in case.io:
        case.check("attn_mask", prefix_causal_mask(1 + encoder.num_patches, encoder.num_tokens))


@runs("slot_norm")
def run_slot_norm(case: Case) -> None:
    state, config = weights(case), case.config
    encoder, sizes = encoder_config(state, heads=config["heads"], prefix="encoder.")
    model = Semanticist(
        SemanticistConfig(
            **sizes,
            token_dim=config["slot_dim"],
            normalise=config["norm_slots"],
            normalise_eps=config["eps"],
            encoder=encoder,
            decoder=DecoderConfig(patch=encoder.patch, dim=4, depth=1, heads=1),  # not recorded, not used
        )
    ).eval()
    load_part(model.encoder, part(state, "encoder."), "encoder.")
    model.bottleneck.load_state_dict(part(state, "bottleneck."))
    with outputs_of(model.bottleneck.proj) as raw:
        case.check("slots", model.encode(case.io["image"]))
        case.check("features_slots", model.bottleneck(case.io["features"]))
    case.check("slots_raw", raw[0])
    case.check("features_raw", raw[1])


@runs("nested_sampler")
def run_nested_sampler(case: Case) -> None:
    length = case.config["num_slots"]
    case.check("mask_train", prefix_mask(case.io["k_train"], length))
    # The released code uses -1 for all tokens and clamps larger counts; ours uses None and raises an error.
    wanted = [None if n < 0 else min(n, length) for n in case.io["n_eval"].tolist()]
    keep = torch.cat([resolve_keep(n, 1, length, torch.device("cpu")) for n in wanted])
    case.check("mask_eval", prefix_mask(keep, length))


# The decoder.


def tokenizer_around_decoder(case: Case) -> Semanticist:
    """A tokenizer with the recorded decoder; its encoder is not used. Its "pixels" are the recorded latents."""
    state = weights(case, "dit.")
    decoder, sizes = decoder_config(state, heads=case.config["heads"], align_depth=case.config["encoder_depth"])
    out_channels = sizes.pop("out_channels")
    config = SemanticistConfig(
        image_size=case.config["input_size"],
        **sizes,
        encoder=EncoderConfig(patch=decoder.patch, dim=4, depth=1, heads=1),
        decoder=decoder,
    )
    model = Semanticist(config).eval()
    assert out_channels == 2 * sizes["channels"], "the discrete objective learns the variance"
    load_part(model.decoder, state, "dit.")
    return model


def prefix_lengths(mask: Tensor) -> Tensor:
    """How many tokens a recorded prefix mask (B, K) keeps, (B,)."""
    keep = mask.sum(1)
    assert torch.equal(prefix_mask(keep, mask.shape[1]), mask), "expected a prefix mask"
    return keep


@runs("dit_forward")
def run_dit_forward(case: Case) -> None:
    state, config, io = weights(case, "dit."), case.config, case.io
    decoder, sizes = decoder_config(state, heads=config["heads"], align_depth=config["encoder_depth"])
    dit = TokenDiT(decoder, size=config["input_size"], **sizes).eval()
    load_part(dit, state, "dit.")
    x, t, slots = io["x"], io["t"], io["slots"]
    masks = {"mixed": io["mask_mixed"], "nested": io["mask_nested"], "nomask": None}
    for name, mask in {**masks, "null": torch.zeros_like(io["mask_mixed"])}.items():
        case.check(f"out_{name}", dit(x, t, dit.fill(slots, mask)))
    mixed = dit.fill(slots, io["mask_mixed"])
    case.check("t_emb", dit.time_embed(t))
    case.check("cond_mixed", dit.token_embed(mixed))
    if "repa_mixed" in io:
        out, aligned = dit.forward_aligned(x, t, mixed)
        case.check("repa_mixed", aligned)
        case.check("out_mixed", out)


@runs("dit_cfg")
def run_dit_cfg(case: Case) -> None:
    model, io = tokenizer_around_decoder(case), case.io
    half = slice(len(io["x2"]) // 2)
    guidance = Guidance(case.config["cfg_scale"])
    for name, keep in (("out_mask", prefix_lengths(io["mask2"][half])), ("out_nomask", None)):
        field = model.field(io["slots2"][half], keep, guidance)
        # The second half repeats the guided noise and is dropped by the released sampler.
        case.check(name, field(io["x2"][half], io["t2"][half]), rows=half)


@runs("ddpm_train_loss")
def run_ddpm_train_loss(case: Case) -> None:
    model, io = tokenizer_around_decoder(case), case.io
    case.check("x_t", model.chain.noised(io["x0"], io["noise"], io["t"]))
    with outputs_of(model.decoder) as out:
        rows = model.denoising_rows(io["x0"], io["slots"], io["mask"], t=io["t"], noise=io["noise"])
    case.check("model_out", out[0])
    case.check("mse", rows["loss_mse"])
    case.check("vb", rows["loss_vb"])
    loss = rows["loss_mse"] + rows["loss_vb"]
    case.check("loss", loss)
    loss.mean().backward()
    check_gradients(case, model.decoder, "dit.")


@runs("repa_loss")
def run_repa_loss(case: Case) -> None:
    model, io, config = tokenizer_around_decoder(case).train(), case.io, case.config
    model.config.alignment.weight = config["repa_loss_weight"]
    model.config.nested = NestedConfig(after=0.5, drop_before=config["cond_drop_prob"])
    latents, slots, features = io["x_vae"], io["slots"], io["z"]

    def check_losses(suffix: str, mask: Tensor) -> None:
        random_inputs = {"t": io[f"t{suffix}"], "noise": io[f"noise{suffix}"]}
        losses = model.denoising(latents, slots, mask, **random_inputs, features=features)
        case.check(f"diff_loss{suffix}", losses["loss_mse"] + losses["loss_vb"])
        case.check(f"repa_loss{suffix}", losses["loss_align"])

    assert model.decoder.projector is not None
    with outputs_of(model.decoder.projector) as projected:
        check_losses("", prefix_mask(io["k"], config["slots"]))
    case.check("z_tilde", projected[0])
    case.check("z_tilde_resized", resize_tokens(projected[0], config["z_tokens"]))
    u = io["u_pre"].flatten()
    check_losses("_pre", model.training_mask(len(u), 0.0, u.device, u=u))

    teacher = Teacher(nn.Identity(), image_size=config["repa_image_size"])
    case.check("teacher_input", teacher.prepare(io["image"]))


@runs("ddpm_schedule")
def run_ddpm_schedule(case: Case) -> None:
    for schedule in ("linear", "cosine"):
        chain = Chain.named(schedule, len(case.io[f"{schedule}.betas"]))
        case.check(f"{schedule}.betas", chain.betas)
        case.check(f"{schedule}.alphas_cumprod", chain.alpha_bar)
        case.check(f"{schedule}.posterior_log_variance_clipped", chain.posterior_log_variance)
        case.check(f"{schedule}.posterior_mean_coef1", chain.posterior_mean_data)
        case.check(f"{schedule}.posterior_mean_coef2", chain.posterior_mean_x)
    full = Chain.named("linear", len(case.io["linear.betas"]))
    for spec in case.config["specs"]:
        name, short = spec.replace(",", "_") or "full", full.respace(spec)
        case.check(f"respace.{name}.map", short.step_map)
        case.check(f"respace.{name}.betas", short.betas)


@runs("ddpm_sample")
def run_ddpm_sample(case: Case) -> None:
    model, io, config = tokenizer_around_decoder(case), case.io, case.config
    assert model.chain.respace(config["respacing"]).step_map == config["timestep_map"]
    for run, scale in (("nocfg", 1.0), ("cfg", config["cfg_scale"])):
        start = io[f"{run}.z0"]
        with inputs_of(model.decoder) as states:
            latent = model.decode_latents(
                io["slots"],
                start,
                recorded_noise(*io[f"{run}.noise"]),
                keep=prefix_lengths(io["mask"]),
                steps=config["respacing"],
                guidance=Guidance(scale),
            )
        case.check(f"{run}.latent", latent)
        half = slice(len(start))
        trajectory = [*(x[half] for x in states[1:]), latent]
        case.check(f"{run}.trajectory", torch.stack(trajectory), rows=(slice(None), half))


# The diffusion head.


def diffusion_head(case: Case) -> DiffusionHead:
    state = weights(case, "diffloss.")
    config, sizes = head_config(state, prefix="net.")
    config.last_step = case.config.get("last_step_size", config.last_step)
    head = DiffusionHead(config, **sizes).eval()
    load_part(head, state, "diffloss.")
    return head


def conditions(z: Tensor, guided: bool) -> dict[str, Tensor]:
    """Recorded conditions as arguments: with guidance the second half of the rows is unconditional."""
    return dict(zip(("cond", "uncond"), z.chunk(2))) if guided else {"cond": z}


@runs("diffloss_net_concat", "diffloss_net_adaln")
def run_diffloss_net(case: Case) -> None:
    state, io = weights(case, "diffloss.net."), case.io
    config, sizes = head_config(state)
    assert config.condition == case.config["cond_method"]
    head = DiffusionHead(config, **sizes).eval()
    load_part(head.net, state, "diffloss.net.")
    case.check("out", head.net(io["x"], io["t"], io["z"]))
    case.check("t_emb", head.net.time_embed(io["t"]))
    with inputs_of(head.net.time_embed.fc1) as waves:
        head.net.time_embed(torch.tensor([0, 0.25, 1, 17, 999]))
    case.check("sinusoid", waves[0])
    half = slice(len(io["x"]) // 2)
    field = head.field(**conditions(io["z"], guided=True), scale=case.config["cfg_scale"])
    case.check("out_cfg", field(io["x"][half], io["t_const"][half]), rows=half)


@runs("si_loss")
def run_si_loss(case: Case) -> None:
    head, io = diffusion_head(case), case.io
    x_t = head.objective.path.interpolate(io["x1"], io["x0"], io["t"])
    case.check("x_t", x_t)
    case.check("target", head.objective.target(io["x1"], io["x0"], expand(io["t"], x_t)))
    case.check("pred", head.net(x_t, io["t"], io["z"]))
    rows = head.loss_rows(io["x1"], io["z"], t=io["t"], noise=io["x0"])
    case.check("loss_rows", rows)
    case.check("loss", rows.mean())
    case.check("loss_masked", (rows * io["mask"]).sum() / io["mask"].sum())


@runs("si_sample")
def run_si_sample(case: Case) -> None:
    head, io, config = diffusion_head(case), case.io, case.config
    for length in ("short", "default"):
        steps = config[f"num_steps_{length}"]
        for run, scale in (("nocfg", 1.0), ("cfg", config["cfg_scale"])):
            name = f"{length}.{run}"
            start = io[f"{name}.init"]
            with inputs_of(head.net.input) as states, inputs_of(head.net.time_embed) as times:
                sample = head.sample(
                    **conditions(io["z"], scale != 1),
                    start=start,
                    randn=recorded_noise(*io[f"{name}.noise"]),
                    scale=scale,
                    steps=steps,
                    temperature=config["temperature"],
                )
            case.check(f"{name}.sample", sample)
            half = slice(len(start))
            trajectory = torch.stack([*(x[half] for x in states[1:]), sample])
            # Long trajectories are recorded at every 50th state.
            stride = 1 if len(io[f"{name}.trajectory"]) == steps else 50
            case.check(f"{name}.trajectory", trajectory[::stride], rows=(slice(None), half))
        if f"grid.{length}" in io:
            case.check(f"grid.{length}", torch.cat(times))


@runs("diffloss_ddpm")
def run_diffloss_ddpm(case: Case) -> None:
    head, io, config = diffusion_head(case), case.io, case.config
    case.check("loss", head.loss_rows(io["x1"], io["z"], t=io["t"], noise=io["noise"]).mean())
    assert head.chain.respace(config["respacing"]).step_map == config["timestep_map"]
    for run, scale in (("nocfg", 1.0), ("cfg", config["cfg_scale"])):
        sample = head.sample(
            **conditions(io["z"], scale != 1),
            start=io[f"{run}.init"],
            randn=recorded_noise(*io[f"{run}.noise"]),
            scale=scale,
            steps=config["respacing"],
            temperature=config["temperature"],
        )
        case.check(f"{run}.sample", sample)


# The autoregressive model.


def generator(case: Case) -> EpsilonLlamaGen:
    config = case.config
    model = convert_ar(case.weights, heads=config["n_head"], class_dropout=config["class_dropout_prob"])
    model.head.config.last_step = config.get("last_step_size", model.head.config.last_step)
    return model


@runs("ar_train")
def run_ar_train(case: Case) -> None:
    model, io = generator(case), case.io
    slots, t, noise = io["slots"], io["t"], io["x0"]
    hidden = model.hidden(slots, model.label_embed.drop(io["labels"], io["u_class"]))
    case.check("hidden", hidden)
    copies = len(t) // slots.flatten(0, 1).shape[0]
    x_t = model.head.objective.path.interpolate(slots.flatten(0, 1).repeat(copies, 1), noise, t)
    case.check("pred", model.head.net(x_t, t, hidden.flatten(0, 1).repeat(copies, 1)))
    rows = model.head.loss_rows(slots.flatten(0, 1), hidden.flatten(0, 1), t=t, noise=noise)
    case.check("loss_rows", rows)
    case.check("loss", rows.mean())
    rows.mean().backward()
    check_gradients(case, model)


@runs("ar_incremental")
@torch.no_grad()
def run_ar_incremental(case: Case) -> None:
    model, tokens, labels = generator(case), case.io["tokens"], case.io["labels2"]
    decoder = CachedDecoder(model, labels.chunk(2)[0], tokens.shape[1], with_null=True)
    assert torch.equal(decoder.cond, labels)
    hidden = [decoder.step_rows(tokens[:, i - 1] if i else None) for i in range(tokens.shape[1])]
    case.check("hidden", torch.stack(hidden, dim=1))
    case.check("k_cache", torch.stack([cache.k for cache in decoder.caches]))


@runs("ar_generate")
def run_ar_generate(case: Case) -> None:
    model, io, config = generator(case), case.io, case.config
    steps = config["sde_num_steps"] if config["use_si"] else int(config["num_sampling_steps"])
    guidances = {
        "nocfg": Guidance(1.0),
        "linear": as_guidance(config["cfg"], "linear"),
        "constant": Guidance(config["cfg"], schedule="constant"),
    }
    for run, guidance in guidances.items():
        start, noise = io[f"{run}.init"], io[f"{run}.noise"]
        with inputs_of(model.head.net.cond_embed) as hidden:
            tokens = model.sample(
                io["labels"],
                length=len(start),
                guidance=guidance,
                steps=steps,
                temperature=config["temperature"],
                noise=recorded_noise(*(each for first, rest in zip(start, noise) for each in (first, *rest))),
            )
        case.check(f"{run}.tokens", tokens)
        case.check(f"{run}.cfg_per_token", guidance.token_scales(len(start)))
        case.check(f"{run}.hidden", torch.stack(hidden, dim=1))


@runs("cfg_schedule")
def run_cfg_schedule(case: Case) -> None:
    for i, (scale, length) in enumerate(case.io["table"].tolist()):
        case.check(f"linear.{i}", as_guidance(scale, "linear").token_scales(int(length)))
        case.check(f"constant.{i}", as_guidance(scale, "constant").token_scales(int(length)))


# Images and files.


@runs("augment")
def run_augment(case: Case) -> None:
    from PIL import Image

    from tok1d.data.transforms import VIEW_SCALES, center_crop, centercrop_views, tencrop_views, to_tensor

    image, size = Image.fromarray(case.io["image_u8"].numpy()), case.config["size"]
    assert list(VIEW_SCALES) == case.config["crop_ranges"]
    case.check("tencrop", torch.stack([to_tensor(view) for view in tencrop_views(image, size)]))
    case.check("centercrop", torch.stack([to_tensor(view) for view in centercrop_views(image, size)]))
    case.check("test", to_tensor(center_crop(image, size)))


@runs("ema_checkpoint")
def run_ema_checkpoint(case: Case) -> None:
    from tok1d.train.ema import EMA

    config, path = case.config, case.folder / case.config["file"]
    published = read_published(path)
    assert published.keys() == set(config["cleaned_keys"])
    case.check("after", published["encoder.cls_token"])

    state = from_published(published, source=str(path))
    encoder, sizes = encoder_config(state, heads=config["enc_heads"], prefix="encoder.")
    load_part(QueryEncoder(encoder, **sizes), part(state, "encoder."), "encoder.")
    depth = config["dit"]["encoder_depth"]
    decoder, sizes = decoder_config(state, heads=config["dit_heads"], align_depth=depth, prefix="decoder.")
    load_part(TokenDiT(decoder, size=decoder.patch, **sizes), part(state, "decoder."), "dit.")
    Normalised(encoder.dim, sizes["token_dim"]).load_state_dict(part(state, "bottleneck."))

    model = nn.Module()
    model.weight = nn.Parameter(case.io["before"].clone())
    ema = EMA(model, config["ema_decay"], ramp=False)
    model.weight.data.copy_(case.io["param"])
    ema.update(0)
    case.check("after", ema.state_dict()["weight"])


@runs("lr_schedule")
def run_lr_schedule(case: Case) -> None:
    from tok1d.config.optim import OptimConfig
    from tok1d.train.optim import learning_rate

    config = case.config
    for schedule in ("cosine", "constant"):
        settings = OptimConfig(
            steps=config["epochs"] * config["steps_per_epoch"],
            batch_size=1,
            lr=config["peak"],
            lr_min=config["lr_min"],
            warmup=config["warmup_epochs"] * config["steps_per_epoch"],
            warmup_init=config["warmup_init"],
            schedule=schedule,
            decay_steps=config["cosine_period_steps"] if schedule == "cosine" else None,
        )
        rates = [learning_rate(step, settings) for step in range(len(case.io[schedule]))]
        case.check(schedule, torch.tensor(rates, dtype=torch.float64))


@runs("cache_loader")
def run_cache_loader(case: Case) -> None:
    from tempfile import TemporaryDirectory

    from tok1d.data.token_writer import TokenWriter
    from tok1d.data.tokens import Layout, TokenCache
    from tok1d.train.rows import released

    slots, config = case.io["slots"], case.config
    layout, meta, size = Layout(*slots.shape[1:], "float32", 8), {"views": config["num_augs"]}, config["batch_size"]
    with TemporaryDirectory() as folder:
        with TokenWriter(folder, layout, len(slots), meta=meta) as writer:
            writer.write(slots, case.io["targets"])
        cache = TokenCache(folder)
        steps = len(case.io["epoch0.sizes"])
        for epoch in range(2):
            rows = [
                released(len(cache), cache.views, size, seed=config["seed"], step=step)
                for step in range(epoch * steps, (epoch + 1) * steps)
            ]
            case.check(f"epoch{epoch}.sizes", [len(part) for part in rows])
            case.check(f"epoch{epoch}.slots", torch.cat([cache.batch(part)[0] for part in rows]))
    # The released `__len__` counts only whole batches, but the short one is also returned; ours does the same.
    case.check("len", config["images"] // size)


# The autoencoder, and the tokenizer from image to image.


def check_autoencoder(case: Case, space: Autoencoder) -> None:
    """Recorded images are in [-1, 1] and latents unscaled; ours are in [0, 1] and scaled."""
    network = space.load()
    with outputs_of(network.quant_conv) as moments:
        mean, logvar = space.posterior((case.io["image"] + 1) / 2)
    case.check("moments", moments[0])
    for name, value in (("mean", mean), ("logvar", logvar)):
        if name in case.io:
            case.check(name, value)
    latents = case.io["z"] * network.config.scaling_factor
    case.check("decoded", space.decode(latents) * 2 - 1)


@runs("vae_kl16")
def run_vae_kl16(case: Case) -> None:
    import json
    import shutil
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        shutil.copyfile(case.weights, f"{folder}/diffusion_pytorch_model.safetensors")
        with open(f"{folder}/config.json", "w", encoding="utf-8") as file:
            json.dump({"_class_name": "AutoencoderKL", **case.config}, file)
        space = Autoencoder(LatentConfig("autoencoder", folder, *geometry(case.config)), case.config["in_channels"])
        space.reader = read_network
        check_autoencoder(case, space)


@runs("vae_kl16_mar_keys")
def run_vae_kl16_mar_keys(case: Case) -> None:
    config = case.config
    network = load_mar(case.weights, groups=config["norm_groups"])
    assert list(network.config.block_out_channels) == [config["ch"] * factor for factor in config["ch_mult"]]
    assert network.config.layers_per_block == config["num_res_blocks"]
    factor = 2 ** (len(config["ch_mult"]) - 1)
    space = Autoencoder(LatentConfig("autoencoder", "kl16.ckpt", config["z_channels"], factor))
    space.use(network)
    check_autoencoder(case, space)


@runs("tokenizer_e2e")
@torch.no_grad()
def run_tokenizer_e2e(case: Case) -> None:
    io, config = case.io, case.config
    model = convert_tokenizer(
        case.weights,
        encoder_heads=config["enc_heads"],
        decoder_heads=config["dit_heads"],
        causal=config.get("is_causal", True),
        normalise=config["norm_slots"],
        align_depth=config["dit"]["encoder_depth"],
        autoencoder=EMBEDDED,
        autoencoder_groups=config["vae"]["norm_num_groups"],
        autoencoder_scale=config["vae"]["scaling_factor"],
    )
    space = model.latent_space
    assert isinstance(space, Autoencoder)
    for key, value in config["vae"].items():
        found = space.load().config[key]
        assert (list(found) if isinstance(found, tuple | list) else found) == value, key
    assert model.config.image_size == config["img"]
    tokens = model.encode(io["image"])
    case.check("slots", tokens)
    case.check("latent", space.encode(io["image"], noise=io["latent_noise"]))
    # The release asks for all tokens by -1 and clamps larger counts.
    keep = None if config["n_slots"] < 0 else min(config["n_slots"], config["slots"])
    for run, scale in (("nocfg", 1.0), ("cfg", config["cfg_scale"])):
        latents = model.decode_latents(
            tokens,
            io[f"{run}.z0"],
            recorded_noise(*io[f"{run}.noise"]),
            keep=keep,
            steps=config["respace"],
            guidance=Guidance(scale),
        )
        case.check(f"{run}.image", space.decode(latents))

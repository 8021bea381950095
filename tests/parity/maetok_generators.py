"""MAETok's recorded cases of generators: SiT, DiT and LightningDiT.

SiT was recorded with noise at time 1 and its velocity from tokens to noise; our time is 1 - theirs and our velocity
the negative of theirs. LightningDiT was recorded on images of latents (B, C, H, W): tokens row by row here.
"""

from typing import Any

import torch
from torch import Tensor, nn

from tok1d.config.sampling import SampleSettings
from tok1d.diffusion.ddpm import Chain
from tok1d.diffusion.guidance import Guidance
from tok1d.diffusion.objective import Times
from tok1d.diffusion.path import Path
from tok1d.diffusion.solver import time_grid
from tok1d.generators.lightningdit import LightningBlock, LightningDiT
from tok1d.generators.sit import SiT
from tok1d.nn.attention import rotary
from tok1d.nn.norm import Modulation, RMSNorm, modulate
from tok1d.nn.position import rotate
from tok1d.zoo.adapters.keymap import read_published
from tok1d.zoo.adapters.semanticist_names import part
from tok1d.zoo.adapters.sit import convert_dit, convert_lightningdit, convert_sit, from_published
from tok1d.zoo.compat.guidance import first_channels, heun_held

from .maetok_cases import RUNNERS, runs
from .recorded import Case, outputs_of, recorded_noise

__all__ = ["RUNNERS"]


def sit(case: Case, **options: Any) -> SiT:
    config = case.config
    model = convert_sit(case.weights, heads=config["num_heads"], class_dropout=config["class_dropout_prob"], **options)
    assert model.config.qk_norm == config["qk_norm"] and model.config.mlp_ratio == config["mlp_ratio"]
    assert model.label_embed.null == config["null_label"] == config["num_classes"]
    return model


@runs("sit_forward", "sit_forward_qknorm")
def run_sit_forward(case: Case) -> None:
    model, io = sit(case), case.io
    x, t, y = io["x"], 1 - io["t"], io["y"]
    with outputs_of(model.net.blocks[0]) as hidden:
        case.check("v", -model.net(x, t, y))
    case.check("hidden_after_block_0", hidden[0])
    case.check("t_emb", model.net.time_embed(t))
    case.check("v_train", -model.net(x, t, model.label_embed.drop(y, io["drop_u"])))


@runs("sit_loss")
def run_sit_loss(case: Case) -> None:
    io = case.io
    for name in case.checks:
        path, weighting = name.split(".")
        model = sit(case, path=path)
        # Their lognormal ratio of noise to tokens is the inverse of ours.
        t = model.times.from_normal(-io["g"].flatten()) if weighting == "lognormal" else 1 - io["u"].flatten()
        case.check(f"{name}.t", 1 - t)
        case.check(f"{name}.x_t", model.objective.path.interpolate(io["x"], io["noise"], t))
        case.check(f"{name}.loss", model.loss_rows(io["x"], io["y"], t=t, noise=io["noise"])["loss"])


@runs("sit_sampling")
def run_sit_sampling(case: Case) -> None:
    io, models = case.io, {path: sit(case, path=path) for path in ("linear", "cosine")}
    for name, config in case.checks.items():
        if name.startswith("score"):
            path, t = name.removeprefix("score_"), 1 - io["score.t"]
            case.check(f"score.{path}", Path(path).score(-io["score.v"], io["z"], t))
            continue
        path, steps = config["path_type"], config["num_steps"]
        model, low, high = models[path], config.get("guidance_low", 0.0), config.get("guidance_high", 1.0)
        guidance = Guidance(config["cfg_scale"], interval=(1 - high, 1 - low))
        if config.get("heun"):
            case.check(name, held_heun_sample(model, io["z"], io["y"], guidance, steps))
            continue
        is_sde = name.startswith("sde")
        noise = recorded_noise(io["z"], *(io[f"eps_{path}"] if is_sde else ()))
        options = {"guidance": guidance, "steps": steps, "sampler": "sde" if is_sde else "euler"}
        with torch.no_grad():
            case.check(name, model.sample(io["y"], noise=noise, **options))


@torch.no_grad()
def held_heun_sample(model: SiT, z: Tensor, labels: Tensor, guidance: Guidance, steps: int) -> Tensor:
    plain, guided = model.field(labels, Guidance()), model.field(labels, Guidance(guidance.scale))
    return heun_held(lambda t: guided if guidance.acts_at(t) else plain, z, time_grid(steps))


@runs("dit")
def run_dit(case: Case) -> None:
    io, heads = case.io, case.config["num_heads"]
    model = convert_dit(case.weights, heads=heads)
    case.check("out", model.net(io["x"], io["t"], io["y"]))
    half = slice(len(io["x"]) // 2)
    labels = io["y_cfg"][half]
    guidance = Guidance(case.stated("out_cfg", "scale"))
    # The second half repeats the guided noise and is dropped by the released sampler.
    case.check("out_cfg", model.field(labels, guidance)(io["x"][half], io["t_cfg"][half]), rows=half)
    for schedule in ("linear", "cosine"):
        case.check(f"{schedule}.betas", Chain.named(schedule, len(io[f"{schedule}.betas"])).betas)
        trained = convert_dit(case.weights, heads=heads, schedule=schedule)
        losses = trained.loss_rows(io["x"], io["y"], t=io["t"], noise=io["noise"])
        case.check(f"{schedule}.mse", losses["loss_mse"])
        case.check(f"{schedule}.vb", losses["loss_vb"])
        case.check(f"{schedule}.loss", losses["loss_mse"] + losses["loss_vb"])
    config, x = case.checks["p_sample"], io["x"][half]
    model = convert_dit(case.weights, heads=heads, schedule=config["noise_schedule"])
    guidance, settings = Guidance(config["cfg_scale"]), SampleSettings(steps=config["steps"])
    with torch.no_grad():  # `generate`, because the recorded class ids include the null class
        sample = model.make_tokens(labels, x.shape[1], guidance, settings, recorded_noise(x, *io["eps"]))
    case.check("p_sample", sample, rows=half)
    kept = model.chain.respace(config["steps"]).step_map
    recorded = io["p_sample_timesteps"].tolist()
    case.check("p_sample_timesteps", kept if recorded == sorted(recorded) else kept[::-1])


def as_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C)."""
    return x.flatten(2).transpose(1, 2)


def lightningdit(case: Case) -> LightningDiT:
    model, config = convert_lightningdit(case.weights, heads=case.config["num_heads"]), case.config
    assert (model.config.qk_norm, model.config.shift) == (config["use_qknorm"], not config["wo_shift"])
    assert (model.config.rotary, model.config.positions) == ("2d", "2d")
    width = model.config.dim
    assert int(width * model.config.mlp_ratio) * 2 // 3 == int(width * config["mlp_ratio"]) * 2 // 3
    return model


@runs("lightningdit_base", "lightningdit_qknorm", "lightningdit_wo_shift")
@torch.no_grad()
def run_lightningdit(case: Case) -> None:
    model, io = lightningdit(case), case.io
    x = as_tokens(io["x"])
    check_image(case, "v", model.net(x, io["t"], io["y"]))
    half = slice(len(x) // 2)
    x, labels, t = x[half], io["y_cfg"][half], io["t_cfg"][half]
    plain = model.field(labels, Guidance())
    scale = case.stated("v_cfg3", "scale")
    for name, start in (("v_cfg3", 0.0), ("v_cfg3_off", case.stated("v_cfg3_off", "start"))):
        field = first_channels(model.field(labels, Guidance(scale, interval=(start, 1.0))), plain)
        check_image(case, name, field(x, t), rows=half)


def check_image(case: Case, name: str, tokens: Tensor, rows: Any = ...) -> None:
    case.check(name, tokens.transpose(1, 2).unflatten(2, case.io[name].shape[2:]), rows=rows)


@runs("lightningdit_block1d")
def run_lightningdit_block(case: Case) -> None:
    config, io = case.config, case.io
    dim, x, c = config["hidden_size"], io["x"], io["c"][:, None]
    published = {
        name.replace("block.", "blocks.0.", 1).replace("final.", "final_layer.", 1): value
        for name, value in read_published(case.weights).items()
    }
    state, ignored = from_published(published, "lightningdit")
    assert not ignored
    block = LightningBlock(dim, config["num_heads"], qk_norm=config["use_qknorm"], shift=True)
    block.load_state_dict(part(state, "net.blocks.0."))
    cos, sin = io["rope_cos"][:, ::2], io["rope_sin"][:, ::2]
    case.check("q_rot", rotate(io["q"], cos, sin))
    case.check("y_rope", block(x, c, rotary(cos, sin)))
    case.check("y_norope", block(x, c))
    final = nn.ModuleDict(
        {
            "norm": RMSNorm(dim, eps=1e-6),
            "modulation": Modulation(dim, 2),
            "out": nn.Linear(dim, config["out_channels"]),
        }
    )
    final.load_state_dict({k: v for k, v in part(state, "net.").items() if not k.startswith("blocks.")})
    case.check("final", final["out"](modulate(final["norm"](io["y_rope"]), *final["modulation"](c))))


@runs("lightningdit_loss")
def run_lightningdit_loss(case: Case) -> None:
    model, io = lightningdit(case), case.io
    data, noise = as_tokens(io["x1"]), as_tokens(io["x0"])
    for name, config in case.checks.items():
        if "num_steps" in config:
            continue
        path: Any = {"Linear": "linear", "GVP": "cosine"}[name]
        model.objective = type(model.objective)(Path(path), "velocity")
        t = Times("logit_normal").from_normal(io["g"])
        case.check(f"{name}.t", t)
        check_image(case, f"{name}.x_t", model.objective.path.interpolate(data, noise, t))
        losses = model.loss_rows(data, io["y"], t=t, noise=noise)
        case.check(f"{name}.loss", losses["loss"])
        case.check(f"{name}.cos_loss", losses["loss_direction"])
    weight = model.net.out.weight.detach().clone()
    for name, config in case.checks.items():
        if "num_steps" in config:
            model.net.out.weight.data = weight * config["final_linear_weight_scale"]
            # Their shift multiplies time from the noise, ours from the tokens; n grid points are n - 1 steps.
            shift = config["timestep_shift"]
            model.config.time_shift = 1 / shift if shift else 1.0
            options = {"guidance": Guidance(), "steps": config["num_steps"] - 1, "sampler": "euler"}
            with torch.no_grad():
                check_image(case, name, model.sample(io["y"], noise=recorded_noise(noise), **options))

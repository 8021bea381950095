"""The diffusion head of MAR. CARD's head is the same with one output per value instead of two."""

from collections.abc import Callable

import torch

from tok1d.diffusion.guidance import combine
from tok1d.generators.head import DiffusionHead
from tok1d.zoo.adapters.keymap import read_published
from tok1d.zoo.adapters.semanticist import head_config
from tok1d.zoo.adapters.semanticist_names import from_published, load_part

from .recorded import Case, inputs_of, recorded_noise

RUNNERS: dict[str, Callable[[Case], None]] = {}

INPUTS = {"x", "t", "t_float", "z", "noise", "init_noise", "step_noise"}  # all other tensors are results


def runs(*kinds: str) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Register a function for kinds of cases."""

    def register(function: Callable[[Case], None]) -> Callable[[Case], None]:
        RUNNERS.update(dict.fromkeys(kinds, function))
        return function

    return register


@runs("mar_diffusion_head")
@torch.no_grad()
def run_mar_diffusion_head(case: Case) -> None:
    """MAR's names are those of Semanticist's files, below diffloss.net. in a whole model."""
    case.unchecked.update(case.io.keys() - INPUTS)
    io, stated = case.io, case.config
    state = from_published(read_published(case.weights), "diffloss.net.", str(case.weights))
    config, sizes = head_config(state)
    assert (config.width, config.depth, config.condition) == (stated["width"], stated["depth"], "adaln")
    assert (config.objective, sizes) == ("ddpm", {"token_dim": stated["channels"], "cond_dim": stated["z"]})
    head = DiffusionHead(config, **sizes).eval()
    load_part(head.net, state, "diffloss.net.")
    chain = head.chain
    assert len(chain) == stated["diffusion_steps"] and stated["noise_schedule"] == "cosine"
    case.check("alphas_cumprod", torch.from_numpy(chain.alpha_bar))
    case.check("timestep_map", chain.respace(stated["steps"]).step_map)

    case.check("out", head.net(io["x"], io["t"], io["z"]))
    with inputs_of(head.net.time_embed.fc1) as waves:
        case.check("out_float_t", head.net(io["x"], io["t_float"], io["z"]))
    case.check("time_features", waves[0])
    terms = chain.losses(lambda x, t: head.net(x, t, io["z"]), io["x"], io["noise"], io["t"])
    case.check("x_t", chain.noised(io["x"], io["noise"], io["t"]))
    case.check("mse", terms["mse"])
    case.check("vb", terms["vb"])
    case.check("loss", head.loss_rows(io["x"], io["z"], t=io["t"], noise=io["noise"]))

    # Recorded with separate times in both halves. The sampler, whose halves share the times, uses our guided field.
    half, channels = slice(len(io["x"]) // 2), stated["channels"]
    cond, uncond = io["z"].chunk(2)
    yes, no = (head.field(z)(io["x"][half], t) for z, t in zip((cond, uncond), io["t"].chunk(2)))
    noise = combine(yes[:, :channels], no[:, :channels], stated["scale"])
    case.check("out_guided", torch.cat([noise.repeat(2, 1), torch.cat([yes, no])[:, channels:]], dim=1))
    sample = head.sample(
        cond,
        uncond=uncond,
        scale=stated["scale"],
        start=io["init_noise"][half],
        randn=recorded_noise(*io["step_noise"]),
        steps=stated["steps"],
        temperature=stated["temperature"],
    )
    case.check("sample", sample, rows=half)

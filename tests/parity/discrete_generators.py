"""LlamaGen's and MaskGIT's recorded cases, run through tok1d's classes. RUNNERS maps a case's kind to its function.

Integers (ids, counts, masks) must be equal: `Case.check` gives them no tolerance.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from tok1d.config.sampling import SampleSettings
from tok1d.diffusion.guidance import Guidance, combine
from tok1d.generators.categorical import filter_logits
from tok1d.generators.causal import CachedDecoder
from tok1d.generators.llamagen import LlamaGen, LlamaGenConfig, rotary_table
from tok1d.generators.maskgit import MaskGIT, accuracy, mask_ratio, masked_counts
from tok1d.nn.position import rotate
from tok1d.zoo.adapters.llamagen import convert_llamagen
from tok1d.zoo.adapters.maskgit import convert_maskgit
from tok1d.zoo.compat.guidance import llamagen_guidance, maskgit_guidance

from .recorded import Case, recorded_noise

RUNNERS: dict[str, Callable[[Case], None]] = {}


def runs(*kinds: str) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Register a function for kinds of cases."""

    def register(function: Callable[[Case], None]) -> Callable[[Case], None]:
        RUNNERS.update(dict.fromkeys(kinds, function))
        return function

    return register


def llamagen(case: Case) -> LlamaGen:
    config = case.config
    model = convert_llamagen(
        case.weights,
        num_tokens=config["block_size"],
        heads=config["n_head"],
        class_dropout=config["class_dropout_prob"],
        rope_base=config["rope_base"],
    )
    ours = model.config
    assert (ours.dim, ours.depth, ours.vocab_size) == (config["dim"], config["n_layer"], config["vocab_size"])
    assert ours.num_classes == config["num_classes"] and config["cls_token_num"] == 1
    assert model.norm.eps == config["norm_eps"]
    return model


@runs("llamagen_gpt_forward")
@torch.no_grad()
def run_llamagen_forward(case: Case) -> None:
    model, io = llamagen(case), case.io
    tokens, labels = io["tokens"], io["label"]
    case.check("logits", model(tokens[:, :-1], labels))
    case.check("logits_eval_full", model(tokens, labels))
    rows = model.loss_rows(tokens, labels)
    case.check("loss", rows.mean())
    case.check("loss_valid", (rows * io["valid"]).sum() / io["valid"].sum().clamp(min=1 / tokens.shape[1]))
    config = model.config
    line = LlamaGenConfig(
        num_tokens=config.num_tokens, dim=config.dim, heads=config.heads, rope="1d", rope_base=config.rope_base
    )
    x = io["rope_in"].transpose(1, 2)
    for kind, (cos, sin) in {"2d": (model.cos, model.sin), "1d": rotary_table(line)}.items():
        if kind == "1d":  # the recorded table, which no release uses, also has the zero row for the class
            cos, sin = (F.pad(table[1:], (0, 0, 1, 0)) for table in (cos, sin))
        case.check(f"rope_table_{kind}", torch.stack([cos, sin], dim=-1))
        case.check(f"rope_out_{kind}", rotate(x, cos, sin).transpose(1, 2))


@runs("llamagen_gpt_decode")
@torch.no_grad()
def run_llamagen_decode(case: Case) -> None:
    model, io, config = llamagen(case), case.io, case.config
    labels, forced, scale = io["label"], io["forced_tokens"], config["guidance_scale"]
    decoder = CachedDecoder(model, labels, config["block_size"], with_null=True)
    steps = [decoder.step(None)] + [decoder.step(forced[:, i]) for i in range(config["steps"])]
    conditional, unconditional = (torch.stack([step[i] for step in steps], dim=1) for i in (0, 1))  # type: ignore
    case.check("step_logits", torch.cat([conditional, unconditional]))
    case.check("step_logits_mixed", combine(conditional, unconditional, scale))
    case.check("layer0_key_cache", decoder.caches[0].k[:, :, : 1 + config["steps"]])
    length = config["block_size"]
    until = llamagen_guidance(scale, config["guidance_interval"], length)
    case.check("greedy", model.sample(labels, guidance=scale, greedy=True))
    case.check("greedy_interval", model.sample(labels, guidance=until, greedy=True))
    case.check("greedy_no_guidance", model.sample(labels, greedy=True))
    how = {key: config[key] for key in ("temperature", "top_k", "top_p")}
    noise = recorded_noise(*io["exponential_noise"])
    case.check("sampled", model.sample(labels, guidance=until, noise=noise, **how))


@runs("llamagen_sampling_filter")
def run_sampling_filter(case: Case) -> None:
    for i, variant in enumerate(case.config["variants"]):
        kept = filter_logits(case.io["logits"], SampleSettings(**variant))
        case.check(f"filtered_{i}", kept)
        case.check(f"probs_{i}", kept.softmax(-1))


@runs("maskgit_schedule")
def run_maskgit_schedule(case: Case) -> None:
    for length, steps in case.config["schedules"]:
        case.check(f"masked_before_{length}_{steps}", masked_counts(length, steps)[:-1])
    case.check("train_ratio", mask_ratio(case.io["train_r"]))


def maskgit(case: Case) -> MaskGIT:
    config = case.config
    dropout = config["class_label_dropout"] or 0.1  # a file also holds a null class that was never used
    model = convert_maskgit(case.weights, heads=config["num_attention_heads"], class_dropout=dropout)
    ours = model.config
    assert (ours.num_tokens, ours.vocab_size) == (config["image_seq_len"], config["codebook_size"])
    assert (ours.trunk, ours.num_classes) == (config["model_type"].lower(), config["condition_num_classes"])
    assert model.mask_id == config["mask_token_id"]
    return model


def check_logits(case: Case, model: MaskGIT) -> Tensor:
    """Compare the logits with class and without; returns the first."""
    labels, masked_ids = case.io["label"], case.io["masked_tokens"]
    logits = model.net(masked_ids, labels)
    case.check("logits_cond", logits)
    case.check("logits_uncond", model.net(masked_ids, model.check_cond(None, len(labels))))
    return logits


@runs("maskgit_vit_forward")
@torch.no_grad()
def run_maskgit_vit_forward(case: Case) -> None:
    model, io, config = maskgit(case), case.io, case.config
    masked_ids, hidden = model.mask(io["tokens"], time=io["mask_time"], order=io["mask_order_noise"])
    case.check("masks", hidden)
    case.check("masked_tokens", masked_ids)
    logits = check_logits(case, model)
    model.config.label_smoothing = config["label_smoothing"]
    model.config.visible_weight = config["loss_weight_unmasked_token"]
    case.check("loss", model.loss(logits, io["tokens"], hidden))
    case.check("correct_tokens", accuracy(logits, io["tokens"], hidden))


@runs("maskgit_uvit_forward")
@torch.no_grad()
def run_maskgit_uvit_forward(case: Case) -> None:
    check_logits(case, maskgit(case))


@runs("maskgit_vit_trace_constant", "maskgit_vit_trace_linear", "maskgit_vit_trace_power_cosine")
def run_maskgit_trace(case: Case) -> None:
    model, io, how = maskgit(case), case.io, case.config["sampling"]
    guidance: Guidance = maskgit_guidance(
        how["guidance_scale"], how["guidance_decay"], how.get("guidance_scale_pow", model.config.guidance_power)
    )
    steps, noise, annealing = (
        how[key] for key in ("num_sample_steps", "randomize_temperature", "softmax_temperature_annealing")
    )

    def uniform() -> Callable[[Tensor], Tensor]:
        return recorded_noise(*[each for pair in zip(io["token_uniform"], io["confidence_uniform"]) for each in pair])

    options = {"guidance": guidance, "steps": steps}
    trace = list(model.decoding_steps(io["label"], uniform(), **options, noise_scale=noise, annealing=annealing))
    case.check("ids", torch.stack(trace))
    model.config.noise = noise
    sampled = model.sample(io["label"], noise=uniform(), annealing=annealing, **options)
    assert torch.equal(sampled, io["ids"][-1])

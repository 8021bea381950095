"""Recorded cases of quantisers and of the normal posterior, run through tok1d's bottlenecks: kind -> function."""

from collections.abc import Callable

import torch
from torch import Tensor

from tok1d.bottleneck.kl import KL, Posterior
from tok1d.bottleneck.softvq import SoftVQ
from tok1d.bottleneck.vq import VQ

from .recorded import Case

RUNNERS: dict[str, Callable[[Case], None]] = {}


def runs(kind: str) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Register a function for a kind of case."""

    def register(function: Callable[[Case], None]) -> Callable[[Case], None]:
        RUNNERS[kind] = function
        return function

    return register


def rows(grid: Tensor) -> Tensor:
    """(B, C, 1, N), how the 1d-tokenizer keeps tokens, as (B, N, C)."""
    return grid[:, :, 0].transpose(1, 2)


def grid(tokens: Tensor) -> Tensor:
    """The other way round."""
    return tokens.transpose(1, 2)[:, :, None]


def with_codebook(model: VQ | SoftVQ, codebook: Tensor) -> None:
    assert model.codebook.shape == codebook.shape
    model.codebook.data.copy_(codebook)


@runs("vector_quantizer")
def run_vector_quantizer(case: Case) -> None:
    config, io = case.config, case.io
    options = {"size": config["codebook_size"], "beta": config["commitment_cost"]}
    for name in ("plain", "l2"):
        model = VQ(1, config["token_size"], l2=name == "l2", **options)
        with_codebook(model, io["codebook"])
        z = io["z"].clone().requires_grad_()
        quantised, ids, terms = model.quantise(rows(z))
        case.check(f"{name}_quantized", grid(quantised))
        case.check(f"{name}_indices", ids[:, None])
        loss = terms["loss_vq"] + terms["loss_commit"]
        case.check(f"{name}_codebook_loss", terms["loss_vq"])
        case.check(f"{name}_commitment_loss", terms["loss_commit"])
        case.check(f"{name}_loss", loss)
        ((grid(quantised) * io["upstream_grad"]).sum() + loss).backward()
        case.check(f"{name}_grad_z", z.grad)
        case.check(f"{name}_grad_codebook", model.codebook.grad)
    model = VQ(1, config["token_size"], l2=False, revival=True, decay=config["cvq_decay"], **options).train()
    with_codebook(model, io["codebook"])
    assert model.usage is not None
    model.usage.copy_(io["cvq_embed_prob_before"])
    case.check("cvq_indices", model.quantise(rows(io["z"]))[1][:, None])
    case.check("cvq_embed_prob_after", model.usage)
    case.check("cvq_codebook_after", model.codebook)


@runs("softvq_codebase_vq")
def run_softvq_codebase_vq(case: Case) -> None:
    config, io = case.config, case.io
    options = {"l2": config["l2_norm"], "beta": config["beta"], "entropy": config["entropy_loss_ratio"]}
    model = VQ(1, config["dim"], size=config["codebook_size"], **options)
    with_codebook(model, io["codebook"])
    z = io["z"].clone().requires_grad_()
    quantised, ids, terms = model.quantise(z)
    case.check("out", quantised)
    case.check("indices", ids.flatten())
    # A loss of weight 0 is left out.
    losses = {name: terms.get(f"loss_{name}", torch.zeros(())) for name in ("vq", "commit", "entropy")}
    for name, value in losses.items():
        case.check(f"{name}_loss", value)
    ((quantised * io["upstream_grad"]).sum() + sum(losses.values())).backward()
    case.check("grad_z", z.grad)
    case.check("grad_codebook", model.codebook.grad)


@runs("softvq_quantizer")
def run_softvq_quantizer(case: Case) -> None:
    config, io = case.config, case.io
    options = {"size": config["size"], "num_codebooks": config["codebooks"], "tau": config["tau"]}
    for name in ("l2", "plain"):
        model = SoftVQ(1, config["dim"], l2=name == "l2", entropy=config["entropy"], **options)
        with_codebook(model, io["codebook"])
        z = io["z"].clone().requires_grad_()
        mixed, ids, terms = model.quantise(z)
        case.check(f"{name}_out", mixed)
        # The release stores (codebook, image, token) and reads it as (image, codebook, token).
        case.check(f"{name}_indices", ids.transpose(0, 1).reshape(ids.shape))
        entropy = terms.get("loss_entropy", torch.zeros(()))  # at weight 0 absent
        case.check(f"{name}_entropy_loss", entropy)
        ((mixed * io["upstream_grad"]).sum() + entropy).backward()
        case.check(f"{name}_grad_z", z.grad)
        case.check(f"{name}_grad_codebook", model.codebook.grad)


@runs("kl_posterior")
def run_kl_posterior(case: Case) -> None:
    io, channels = case.io, case.config["channels"]
    posterior = Posterior.of(io["parameters"])
    case.check("kl", posterior.kl())
    case.check("mode", posterior.mean)
    case.check("sample", posterior.sample(io["noise"]))
    model = KL(2 * channels, channels, weight=case.config["kl_loss_weight"])
    with torch.no_grad():  # the recorded moments are what the layer made
        model.proj.weight.copy_(torch.eye(2 * channels))
        model.proj.bias.zero_()
    sample, terms = model(io["parameters"], io["noise"])
    case.check("sample", sample)
    case.check("kl_loss", terms["loss_kl"])

"""Muon: momentum whose matrix is made orthogonal before it becomes the update (K. Jordan, 2024; arXiv 2502.16982)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tok1d.errors import ConfigError

if TYPE_CHECKING:
    from torch.optim import Muon
else:
    Muon = getattr(torch.optim, "Muon", torch.optim.Optimizer)

FIRST_VERSION = "2.9"  # of PyTorch with torch.optim.Muon
WIDE = 1.5  # columns for each row, above which five steps have fewer operations with the Gram matrix alone
RMS = 0.2  # root mean square of AdamW's usual updates, which `lr` then scales as AdamW's does (arXiv 2502.16982, 2.2)


def check_available() -> None:
    """Raise ConfigError where this PyTorch has no Muon."""
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(
            f"train.optimizer: muon needs PyTorch {FIRST_VERSION} or newer, found {torch.__version__}; "
            "upgrade PyTorch, or set train.optimizer=adamw"
        )


def iteration_dtype(device: torch.device) -> torch.dtype:
    """The dtype of the Newton-Schulz iteration: bfloat16 on CUDA, float32 elsewhere (CPUs emulate bfloat16)."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def orthogonalised(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """An approximation of U V^T for a matrix U S V^T, by a quintic Newton-Schulz iteration in the matrix's dtype.

    Each step maps a singular value s to a s + b s^3 + c s^5. Torch's coefficients bring singular values that are not
    tiny into about 0.7 to 1.2, not to 1. A wide matrix X in float32 or more is multiplied once, by the product of the
    polynomials in X X^T of all steps, which commute: fewer operations than a multiplication in each step.

    Args:
        matrix: (M, N).
        eps: smallest Frobenius norm that the matrix is divided by.
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / x.norm().clamp(min=eps)
    if torch.finfo(x.dtype).bits >= 32 and x.shape[1] > WIDE * x.shape[0] and steps:
        x = _polynomial(x @ x.mT, coefficients, steps) @ x
    else:
        for _ in range(steps):
            gram = x @ x.mT
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _polynomial(gram: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """The matrix that `steps` steps multiply X by, for gram = X X^T."""
    a, b, c = coefficients
    product = None
    for step in range(1, steps + 1):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor if product is None else factor @ product
        if step < steps:
            gram = factor @ gram @ factor
    assert product is not None
    return product


class GatedMuon(Muon):
    """torch.optim.Muon with the interface of fused optimizers: where `found_inf` is 1, nothing changes.

    The update has the form that "match_rms_adamw" has in torch: its root mean square is about `RMS` times `lr`. The
    iteration runs in `iteration_dtype`; torch's own always runs in bfloat16.
    """

    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None  # always None: gradients arrive unscaled

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update, without waiting for the device."""
        assert closure is None and self.grad_scale is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, momentum, lr = self.state[parameter], group["momentum"], group["lr"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        mean = state["momentum_buffer"]
        taken: Tensor | float = 1.0
        if self.found_inf is not None:
            # The mean stays where it is if the gradient equals it; so a gradient of NaN reaches nothing.
            grad, taken = torch.where(self.found_inf.bool(), mean, grad), 1 - self.found_inf
        mean.lerp_(grad, 1 - momentum)
        update = (grad.lerp(mean, momentum) if group["nesterov"] else mean).to(iteration_dtype(mean.device))
        update = orthogonalised(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
        if group["weight_decay"]:
            parameter.sub_(parameter * (taken * lr * group["weight_decay"]))
        size = RMS * lr * max(parameter.shape) ** 0.5
        parameter.sub_(update.to(parameter.dtype) * (taken * size))

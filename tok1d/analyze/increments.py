"""Are the tokens like principal components? Directions and sizes of what each token adds to the prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tok1d.analyze.prefix import latents_and_noise
from tok1d.data.images import ImageSet
from tok1d.data.subset import subset
from tok1d.errors import InputError
from tok1d.tokenizers.prefix import prefix_mask


@dataclass(frozen=True)
class Increments:
    """What token k adds to the decoder's prediction: d_k = prediction(first k tokens) - prediction(first k - 1).

    Args:
        cosine: (K, K) mean cosine between d_i and d_j, 1 on the diagonal.
        absolute: (K, K) mean of its absolute value: signs that differ between images do not cancel here.
        energy: (K,) mean squared norm of d_k over the pixels, divided by their number.
    """

    cosine: Tensor
    absolute: Tensor
    energy: Tensor

    @property
    def off_diagonal(self) -> float:
        """Mean absolute cosine of different tokens; 0 is orthogonal, about sqrt(2 / (pi n)) random in n numbers."""
        size = len(self.energy)
        return float((self.absolute.sum() - self.absolute.trace()) / (size * (size - 1)))

    @property
    def neighbours(self) -> float:
        """Mean signed cosine of successive tokens."""
        return float(self.cosine.diagonal(1).mean())

    @property
    def falling(self) -> float:
        """Share of the successive pairs whose energy falls."""
        return float((self.energy.diff() < 0).float().mean())


@torch.no_grad()
def increments(
    tokenizer: Any,
    images: ImageSet,
    *,
    num_images: int = 500,
    num_times: int = 10,
    batch_size: int = 100,
    seed: int = 0,
) -> Increments:
    """Cosine matrix and energies of the prediction increments of successive tokens (Semanticist, appendix A).

    The same noisy latents meet every prefix. A decoder predicts noise, data or velocity; at one time these
    predictions differ by a factor, which no cosine sees. Averages are over images and `num_times` midpoints of equal
    parts of time.

    Raises:
        InputError: a tokenizer without a diffusion decoder, with fewer than two tokens, or no images.
    """
    if not hasattr(tokenizer, "predictions"):
        name = type(tokenizer).__name__
        raise InputError(f"increments need a tokenizer with a diffusion decoder (Semanticist), got {name}")
    length = tokenizer.spec.length
    images = subset(images, num_images)
    count = len(images)
    if length < 2 or count < 1 or num_times < 1:
        raise InputError(f"increments need at least 2 tokens, 1 image and 1 time, got {length}, {count}, {num_times}")
    device = next(tokenizer.parameters()).device
    cosine = torch.zeros(length, length, dtype=torch.float64)
    absolute, energy = torch.zeros_like(cosine), torch.zeros(length, dtype=torch.float64)
    for start in range(0, count, batch_size):
        indices = range(start, min(start + batch_size, count))
        x, labels = images.batch(indices)
        x = x.to(device)
        tokens = tokenizer.encode(x, labels.to(device) if tokenizer.spec.needs_label else None)
        latents, sources = latents_and_noise(tokenizer, x, indices, seed)
        for time in tokenizer.uniform_times(num_times).to(device):
            noise = torch.stack([torch.randn(latents.shape[1:], generator=source) for source in sources]).to(device)
            predicted = torch.stack(
                [
                    tokenizer.predictions(
                        latents,
                        tokens,
                        prefix_mask(torch.full((len(x),), k, device=device), length),
                        t=time.expand(len(x)),
                        noise=noise,
                    ).flatten(1)
                    for k in range(length + 1)
                ],
                dim=1,
            )
            steps = predicted.diff(dim=1).cpu().double()
            unit = torch.nn.functional.normalize(steps, dim=-1)
            cosines = unit @ unit.transpose(1, 2)
            cosine += cosines.sum(0)
            absolute += cosines.abs().sum(0)
            energy += steps.square().mean(-1).sum(0)
    total = count * num_times
    return Increments(cosine / total, absolute / total, energy / total)

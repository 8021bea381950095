"""Direction and size of the change that each token makes to the prediction, as for principal components of data.

Principal components have orthogonal increments of decreasing energy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tok1d.analyze.prefix import diffusion_tokenizer, latents_and_noise
from tok1d.data.images import ImageSet
from tok1d.data.subset import subset
from tok1d.errors import InputError
from tok1d.tokenizers.base import Tokenizer
from tok1d.tokenizers.prefix import prefix_mask


@dataclass(frozen=True)
class Increments:
    """The change of the decoder's prediction by token k: d_k = prediction(first k tokens) - prediction(first k - 1).

    Args:
        cosine: (K, K), mean cosine between d_i and d_j, 1 on the diagonal.
        absolute: (K, K), mean of the cosine's absolute value, in which signs that differ between images do not cancel.
        energy: (K,), mean squared value of d_k.
    """

    cosine: Tensor
    absolute: Tensor
    energy: Tensor

    @property
    def off_diagonal(self) -> float:
        """Mean absolute cosine of different tokens: 0 if orthogonal, sqrt(2 / (pi n)) if random in n dimensions."""
        size = len(self.energy)
        return float((self.absolute.sum() - self.absolute.trace()) / (size * (size - 1)))

    @property
    def neighbours(self) -> float:
        """Mean signed cosine between the increments of successive tokens, in [-1, 1]."""
        return float(self.cosine.diagonal(1).mean())

    @property
    def falling(self) -> float:
        """Fraction of successive tokens, in [0, 1], whose increment has less energy than the one before."""
        return float((self.energy.diff() < 0).float().mean())


@torch.no_grad()
def increments(
    tokenizer: Tokenizer,
    images: ImageSet,
    *,
    num_images: int = 500,
    num_times: int = 10,
    batch_size: int = 100,
    seed: int = 0,
) -> Increments:
    """Measure the prediction increments of successive tokens (Semanticist, arXiv 2503.08685, appendix A).

    All prefixes of an image receive the same noisy latents. Whether the decoder predicts noise, data or velocity does
    not change the cosines: at a given time, differences of these predictions are proportional.

    Args:
        num_images: number of images, see `subset`.
        num_times: number of times, the midpoints of equal parts of the time interval, over which results are averaged.
        seed: of the noise, which depends on the seed and the image, not on the batch size.

    Raises:
        InputError: a tokenizer without a diffusion decoder, with fewer than two tokens, or no images.
    """
    model = diffusion_tokenizer(tokenizer, "increments need")
    length = tokenizer.spec.length
    images = subset(images, num_images)
    count = len(images)
    if length < 2 or count < 1 or num_times < 1:
        raise InputError(f"increments need at least 2 tokens, 1 image and 1 time, got {length}, {count}, {num_times}")
    device = next(model.parameters()).device
    cosine = torch.zeros(length, length, dtype=torch.float64)
    absolute, energy = torch.zeros_like(cosine), torch.zeros(length, dtype=torch.float64)
    for start in range(0, count, batch_size):
        indices = range(start, min(start + batch_size, count))
        x, labels = images.batch(indices)
        x = x.to(device)
        tokens = tokenizer.encode(x, labels.to(device) if tokenizer.spec.needs_label else None)
        latents, rngs = latents_and_noise(model, x, indices, seed)
        for time in model.uniform_times(num_times).to(device):
            noise = torch.stack([torch.randn(latents.shape[1:], generator=rng) for rng in rngs]).to(device)
            predicted = torch.stack(
                [
                    model.predictions(
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

"""What each token of a tokenizer adds: decoding with one token replaced, and its prediction from the earlier tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from tok1d.config.sampling import Decoding
from tok1d.data.images import ImageSet
from tok1d.data.subset import subset
from tok1d.errors import InputError
from tok1d.inference.conditions import ConditionedImages
from tok1d.inference.sampling import DECODER_NOISE, decoder_options, noise_of
from tok1d.tokenizers.base import Tokenizer

RIDGE = 1e-6  # of the mean variance of a number, so that constant numbers do no harm
IMAGES_PER_NUMBER = 4  # fewest images for each number of a code with which the regression is fitted
IDLE = 0.01  # a token is called idle if leaving it out adds at most this share of the error


@dataclass(frozen=True)
class TokenUse:
    """What one token adds, over all images.

    Args:
        token: position, from 0.
        left_out: mean squared error, in [0, 1], of the images decoded with the mean of this token over the images in
            its place, minus the error with all tokens; None for ids, which have no mean.
        replaced: the same with this token of another image in its place.
        change: mean squared difference of the images decoded with the mean and with the token itself (for ids: with the
            token of another image).
        predicted: share of the variance of the token's numbers that a linear regression on all earlier tokens explains,
            fitted on one half of the images and measured on the other, both ways; None for ids, for the first token,
            and with fewer than 4 images for each number in the tokens of an image.
    """

    token: int
    left_out: float | None
    replaced: float
    change: float
    predicted: float | None


@dataclass(frozen=True)
class Uses:
    """The tokens of a tokenizer, and the mean squared error in [0, 1] with all of them."""

    num: int
    error: float
    tokens: list[TokenUse]

    @property
    def idle(self) -> list[int]:
        """Tokens without which the error is at most 1 % higher."""
        return [each.token for each in self.tokens if added(each) <= IDLE * self.error]

    def to_json(self) -> dict[str, object]:
        """Return the fields and the idle tokens."""
        return {**asdict(self), "idle": self.idle}

    def describe(self) -> list[str]:
        """Return one line for each token and one that sums up."""
        lines = [f"squared error with all tokens {self.error:.5f}, {self.num} images"]
        for each in self.tokens:
            parts = [] if each.left_out is None else [f"left out {each.left_out:+.5f}"]
            parts.append(f"of another image {each.replaced:+.5f}")
            if each.predicted is not None:
                parts.append(f"predicted from earlier tokens {each.predicted:6.1%}")
            lines.append(f"token {each.token:4d}: {', '.join(parts)}")
        if len(self.tokens) > 1 and self.tokens[-1].predicted is None:
            few = "ids" if self.tokens[-1].left_out is None else f"{self.num} images, too few for the regression"
            lines.append(f"predicted from earlier tokens: not computed ({few})")
        what = ", ".join(map(str, self.idle)) or "none"
        lines.append(f"tokens without which the error is at most {IDLE:.0%} higher: {what}")
        return lines


def added(use: TokenUse) -> float:
    """The error that leaving a token out adds; for ids, that another image's token adds."""
    return use.replaced if use.left_out is None else use.left_out


def predicted_shares(tokens: Tensor) -> list[float | None]:
    """Share of each token's variance that all earlier tokens explain linearly.

    A ridge regression is fitted on the even images and measured on the odd ones, and the other way round; the mean of
    both is returned, at least 0. A token that is constant counts as explained (1).

    Args:
        tokens: (N, K, D) of at least two images; for a meaningful result N is several times K D.

    Returns:
        K shares in [0, 1]; None for the first token.
    """
    _, length, dim = tokens.shape
    flat = tokens.flatten(1).double()
    scale = flat.var(0).mean().clamp_min(torch.finfo(flat.dtype).tiny)
    shares: list[float | None] = [None]
    for k in range(1, length):
        found = []
        for first in (0, 1):
            fit, held = flat[first::2], flat[1 - first :: 2]
            mean, x, y = fit.mean(0), fit[:, : k * dim], fit[:, k * dim : (k + 1) * dim]
            x, y = x - mean[: k * dim], y - mean[k * dim : (k + 1) * dim]
            gram = x.T @ x + RIDGE * scale * len(fit) * torch.eye(k * dim, dtype=x.dtype, device=x.device)
            weight = torch.linalg.solve(gram, x.T @ y)
            there = held - mean
            target = there[:, k * dim : (k + 1) * dim]
            rest = (target - there[:, : k * dim] @ weight).square().sum()
            total = (target - target.mean(0)).square().sum()
            found.append(1.0 if total <= 0 else max(0.0, 1 - float(rest / total)))
        shares.append(sum(found) / 2)
    return shares


@torch.no_grad()
def token_uses(
    tokenizer: Tokenizer,
    images: ImageSet,
    *,
    num_images: int = 1000,
    batch_size: int = 250,
    seed: int = 0,
    label: str | None = None,
) -> Uses:
    """Replace each token in turn and decode.

    A flow decoder gets the same noise for an image in all variants. All tokens of the images are held in memory, the
    decoded images of one batch only.

    Args:
        num_images: number of images, see `subset`.
        batch_size: images at once; the image whose token replaces another's is the next one of the batch.
        seed: of a diffusion decoder's noise.
        label: see `conditioning_of`.

    Raises:
        InputError: fewer than two images.
    """
    chosen = subset(images, num_images)
    if len(chosen) < 2:
        raise InputError(f"idle: expected at least 2 images, of which one gives tokens to the other, got {len(chosen)}")
    conditioned = ConditionedImages(tokenizer, chosen, label)
    device, options = next(tokenizer.parameters()).device, decoder_options(tokenizer, Decoding())
    length, continuous = tokenizer.spec.length, tokenizer.spec.vocab_size is None
    parts = list(batches(len(chosen), batch_size))
    codes = []
    for numbers in parts:
        x, _, cond = conditioned.batch(numbers)
        codes.append(tokenizer.encode(x.to(device), cond))
    tokens = torch.cat(codes)
    mean = tokens.double().mean(0).to(tokens.dtype) if continuous else None
    error = torch.zeros((), dtype=torch.float64)
    sums = torch.zeros(length, 3, dtype=torch.float64)
    for numbers in parts:
        x, _, cond = conditioned.batch(numbers)

        def decoded(code: Tensor, numbers: range = numbers, cond: Tensor | None = cond) -> Tensor:
            noise = [noise_of(seed, DECODER_NOISE, i) for i in numbers]
            return tokenizer.decode(code, cond, generator=noise, **options).clamp(0, 1)

        base, found = _replaced(decoded, tokens[numbers.start : numbers.stop], mean, x.to(device))
        error += base
        sums += found
    sums /= len(chosen)
    enough = continuous and len(chosen) >= IMAGES_PER_NUMBER * tokens[0].numel()
    shares = predicted_shares(tokens.cpu()) if enough else [None] * length
    uses = [
        TokenUse(k, float(sums[k, 0]) if continuous else None, float(sums[k, 1]), float(sums[k, 2]), shares[k])
        for k in range(length)
    ]
    return Uses(len(chosen), float(error) / len(chosen), uses)


def _replaced(
    decoded: Callable[[Tensor], Tensor], own: Tensor, mean: Tensor | None, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Decode a batch with each token replaced in turn.

    Args:
        own: tokens (B, K, D) or ids (B, K) of the images `x` (B, C, H, W).
        mean: of the tokens, (K, D); None for ids.

    Returns:
        The summed error with all tokens; and (K, 3), the sums of `TokenUse.left_out`, `replaced` and `change`.
    """
    y = decoded(own)
    base, sums = squared(y, x), torch.zeros(own.shape[1], 3, dtype=torch.float64)
    for k in range(own.shape[1]):
        other = own.clone()
        other[:, k] = own[:, k].roll(1, 0)
        z = decoded(other)
        sums[k, 1] = squared(z, x) - base
        if mean is not None:
            other[:, k] = mean[k]
            z = decoded(other)
            sums[k, 0] = squared(z, x) - base
        sums[k, 2] = squared(z, y)
    return base, sums


def batches(num: int, size: int) -> list[range]:
    """Ranges of about `size` numbers, none of one number: an image alone would give its tokens to itself."""
    starts = list(range(0, num, max(size, 2)))
    if len(starts) > 1 and num - starts[-1] == 1:
        starts.pop()
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], num], strict=True)]


def squared(a: Tensor, b: Tensor) -> Tensor:
    """Sum over images (B, C, H, W) of their mean squared differences, float64 on the CPU."""
    return (a - b).square().flatten(1).mean(1).double().sum().cpu()

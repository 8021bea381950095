"""Search while sampling: candidates that a verifier scores, of which the best are kept.

`best-of=N` samples N whole sequences. `beam=W` continues W sequences in several ways, decodes the prefixes and keeps
the W best, which needs ordered tokens (Search over Tokens, arXiv 2604.15453). The first candidate of a sample has the
random numbers of the sample without search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, Protocol

import torch
from torch import Tensor

from tok1d.config.options import flag_of
from tok1d.config.sampling import Kind
from tok1d.diffusion.solver import NoiseSource
from tok1d.errors import InputError
from tok1d.generators.base import NOISE, Generator
from tok1d.generators.causal import CausalGenerator
from tok1d.generators.decoding import Sequences
from tok1d.inference.request import Searching
from tok1d.inference.sampling import DecoderOptions, counted
from tok1d.tokenizers.base import Tokenizer

Key = tuple[int | str, int]  # a class or caption, and the number of the sample
Label = str | int | None  # a class, by name where names are known, a caption, or None without either


class Verifier(Protocol):
    """Scores images; `name` and `unit` are for messages. A function of the user is wrapped by `Checked`."""

    name: str
    unit: str

    def __call__(self, images: Tensor, labels: Sequence[Label]) -> Tensor:
        """Scores (N,), higher is better, of images (N, C, H, W) in [0, 1] of these classes or captions."""
        ...


class Checked:
    """A verifier from any function; checks what it returns and counts the images.

    Args:
        function: see `Verifier.__call__`.
    """

    def __init__(self, function: Callable[[Tensor, Sequence[Label]], object]) -> None:
        self.function, self.images = function, 0
        self.name: str = getattr(function, "name", getattr(function, "__name__", type(function).__name__))
        self.unit: str = getattr(function, "unit", "score")

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Sequence[Label]) -> Tensor:
        """Scores (N,) float64 on the CPU; raises InputError if these are not N finite numbers."""
        self.images += len(images)
        scores = torch.as_tensor(self.function(images, list(labels))).double().cpu()
        if scores.shape != (len(images),) or not scores.isfinite().all():
            found = f"shape {tuple(scores.shape)}" if scores.shape != (len(images),) else "others"
            raise InputError(f"verifier {self.name}: expected {len(images)} finite scores, one an image, got {found}")
        return scores


@dataclass(frozen=True)
class Plan:
    """What a search does.

    Args:
        kind: best-of or beam.
        width: whole samples, or sequences that are kept.
        candidates: continuations of each sequence.
        every: tokens between two comparisons.
    """

    kind: Literal["best-of", "beam"]
    width: int
    candidates: int = 1
    every: int = 1

    @property
    def most(self) -> int:
        """Sequences of a sample in one batch."""
        return 1 if self.kind == "best-of" else self.width * self.candidates


def plan_of(how: Searching, generator: Generator, tokenizer: Tokenizer) -> Plan | None:
    """The search of the settings, checked for these models; None without a search.

    Raises:
        InputError: another text, or a beam where prefixes are not generated or not decoded.
    """
    if not how.search:
        for field in fields(Searching):
            if (value := getattr(how, field.name)) != field.default:
                flag = flag_of(field.name)
                raise InputError(f"{flag}: only a search reads it, pass --search best-of=N or beam=W too; got {value}")
        return None
    kind, _, text = how.search.partition("=")
    if kind not in ("best-of", "beam") or not text.isdecimal() or int(text) < 1:
        raise InputError(f"--search: expected best-of=N or beam=W with a whole number from 1 on, got {how.search!r}")
    width = int(text)
    if kind == "best-of":
        for name, value, default in (("candidates", how.search_candidates, None), ("every", how.search_every, 1)):
            if value != default:
                raise InputError(f"--search-{name}: best-of compares whole samples, leave it out; got {value}")
        return Plan("best-of", width)
    if not isinstance(generator, CausalGenerator):
        raise InputError(
            f"--search: beam needs a generator of one token after the other, a {generator.config.name} makes all "
            "tokens at once; use best-of=N"
        )
    if not tokenizer.spec.ordered:
        raise InputError(
            "--search: beam needs a tokenizer of ordered tokens, this one does not decode prefixes; use best-of=N"
        )
    return Plan("beam", width, how.search_candidates or width, how.search_every)


class Drawn(Protocol):
    """What a search needs of `inference.draw.Drawing`."""

    generator: Generator
    tokenizer: Tokenizer
    length: int

    def arguments(self, keys: Sequence[Key], lane: int = 0) -> DecoderOptions:
        """The arguments of `Generator.sample`, with the random numbers of candidate `lane`."""
        ...

    def decode(self, tokens: Tensor, keys: Sequence[Key], keep: int, lengths: Tensor | None = None) -> Tensor:
        """Images from the first `keep` tokens of samples, or fewer where they have fewer."""
        ...

    def label(self, key: Key) -> Label:
        """The class or caption of a sample."""
        ...


class Search:
    """A search for the samples of a `Drawing`.

    Attributes:
        scores: of the samples so far, by their verifier.
        calls: network calls so far: rows that the generator's sampling networks and the decoder were evaluated on, and
            images that the verifier scored. The pictures of the samples found are decoded once more.
    """

    def __init__(self, drawing: Drawn, plan: Plan, verifier: Callable[[Tensor, Sequence[Label]], object]) -> None:
        self.drawing, self.plan = drawing, plan
        self.verifier = verifier if isinstance(verifier, Checked) else Checked(verifier)
        self.scores: list[Tensor] = []
        self.calls = {"generator": 0, "decoder": 0, "verifier": 0}

    def tokens(self, keys: Sequence[Key]) -> tuple[Tensor, Tensor | None]:
        """The best tokens (B, K, ...) that the search finds for samples, and their numbers (B,) where they end."""
        drawing, before = self.drawing, self.verifier.images
        guidance = drawing.arguments(keys)["guidance"]
        with (
            counted(*drawing.generator.evaluated_networks(guidance)) as sampled,
            counted(drawing.tokenizer.decoder) as decoded,
        ):
            tokens, lengths, scores = (self._best_of if self.plan.kind == "best-of" else self._beam)(keys)
        self.scores.append(scores)
        for name, rows in zip(self.calls, (sampled.rows, decoded.rows, self.verifier.images - before), strict=True):
            self.calls[name] += rows
        return tokens, lengths

    def said(self) -> str:
        """One line: the mean score and the calls for a sample."""
        scores = torch.cat(self.scores)
        calls = ", ".join(f"{name} {rows / len(scores):g}" for name, rows in self.calls.items())
        plan = self.plan
        more = f", {plan.candidates} candidates each, every {plan.every}" if plan.kind == "beam" else ""
        return (
            f"search {plan.kind}={plan.width}{more}: {self.verifier.unit} by {self.verifier.name} "
            f"{float(scores.mean()):.4g}; network calls a sample: {calls}"
        )

    def _score(self, tokens: Tensor, keys: Sequence[Key], keep: int, lengths: Tensor | None) -> Tensor:
        labels = [self.drawing.label(key) for key in keys]
        return self.verifier(self.drawing.decode(tokens, keys, keep, lengths), labels)

    def _best_of(self, keys: Sequence[Key]) -> tuple[Tensor, Tensor | None, Tensor]:
        """One candidate of all samples after the other, so that the memory is that of plain sampling."""
        drawing = self.drawing
        best, numbers = drawing.generator.sample_ragged(**drawing.arguments(keys))
        scores = self._score(best, keys, drawing.length, numbers)
        for lane in range(1, self.plan.width):
            tokens, lengths = drawing.generator.sample_ragged(**drawing.arguments(keys, lane))
            found = self._score(tokens, keys, drawing.length, lengths)
            better = (found > scores).to(best.device)
            best[better] = tokens[better]
            if numbers is not None and lengths is not None:
                numbers[better] = lengths[better]
            scores = torch.maximum(found, scores)
        return best, numbers, scores

    def _beam(self, keys: Sequence[Key]) -> tuple[Tensor, Tensor | None, Tensor]:
        """All samples at once. Of a sequence that is over only one copy competes, as all have the same image."""
        plan, drawing = self.plan, self.drawing
        assert isinstance(drawing.generator, CausalGenerator)
        given = drawing.arguments(keys)
        lanes = [drawing.arguments(keys, lane)["generator"] for lane in range(plan.most)]
        noise = noise_of_lanes(drawing.generator.kind, list(zip(*lanes, strict=True)))
        with torch.no_grad():
            args, own = drawing.generator.checked_arguments(**{**given, "generator": None, "noise": noise})
            found = Sequences(drawing.generator, *args, **own)
            copied = torch.zeros(0, dtype=torch.bool)
            for place in range(drawing.length):
                if place % plan.every == 0:
                    copies = plan.most if place == 0 else plan.candidates
                    found.extend(copies)
                    copied = found.over.cpu() & (torch.arange(len(found)) % copies > 0)
                else:
                    found.extend()
                each, last = len(found) // len(keys), place == drawing.length - 1 or bool(found.over.all())
                if not last and (each <= plan.width or (place + 1) % plan.every):
                    continue
                rows = [key for key in keys for _ in range(each)]
                scores = self._score(found.tokens, rows, found.filled, found.ended)
                again = copied.view(-1, each)
                if drawing.generator.kind == "categorical":
                    again = again | repeated(found.tokens.view(len(keys), each, -1))
                order = (
                    scores.view(-1, each).masked_fill(again, -torch.inf).argsort(dim=1, descending=True, stable=True)
                )
                best = order[:, : 1 if last else plan.width] + each * torch.arange(len(keys))[:, None]
                found.select(best.flatten().to(found.buffer.device))
                if last:
                    break
            found.end()
            return found.tokens, found.ended, scores[best.flatten()]


def repeated(ids: Tensor) -> Tensor:
    """Which of the sequences (B, R, k) of each sample are equal to an earlier one, (B, R) bool on the CPU."""
    equal = (ids[:, :, None] == ids[:, None]).all(-1)
    return equal.tril(-1).any(-1).cpu()


def noise_of_lanes(kind: Kind, generators: Sequence[Sequence[torch.Generator]]) -> NoiseSource:
    """Random numbers for several sequences of each sample, of which the first always has the first generator.

    Args:
        generators: for each sample those of its sequences.
    """

    def source(x: Tensor) -> Tensor:
        each = len(x) // len(generators)
        used: Iterable[torch.Generator] = (lane for lanes in generators for lane in lanes[:each])
        return NOISE[kind](list(used))(x)

    return source

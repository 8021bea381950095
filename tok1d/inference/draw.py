"""Samples of a generator as images: `Drawing` for the command and `generate` and `stream` for Python."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tok1d.config.classes import Classes, chosen, class_names, drawn, model_classes, shortened
from tok1d.config.condition import is_conditional, text_condition
from tok1d.config.nearest import nearest
from tok1d.config.options import parse_counts
from tok1d.data.words import CaptionIds
from tok1d.diffusion.guidance import Guidance
from tok1d.errors import InputError
from tok1d.generators.base import Generator
from tok1d.generators.causal import CausalGenerator
from tok1d.generators.decoding import Sequences
from tok1d.images.convert import to_pil
from tok1d.images.overview import show
from tok1d.inference.captions import caption_reader
from tok1d.inference.conditions import check_conditions, conditioning_of, read_captions
from tok1d.inference.request import SamplePictures
from tok1d.inference.sampling import decoder_options, guidance_of, noise_of
from tok1d.inference.search import Key, Label, Search, plan_of
from tok1d.pictures import data_uri
from tok1d.tokenizers.base import Tokenizer
from tok1d.tokenizers.prefix import token_counts
from tok1d.zoo.store import tokenizer_of

if TYPE_CHECKING:
    from PIL.Image import Image

Scoring = Callable[[Tensor, Sequence[Label]], object]  # see `Verifier`
Progress = Callable[[int, int], object]
MOST = 100  # samples in a batch by default


class Drawing:
    """Samples of classes or captions, in batches.

    The random numbers of a sample depend only on the seed, its class or caption and its number, not on the batch size
    or the other samples.
    """

    def __init__(
        self, generator: Generator, tokenizer: Tokenizer, how: SamplePictures, guidance: Guidance | None
    ) -> None:
        self.generator, self.tokenizer, self.how = generator, tokenizer, how
        sampling, config = how.sampling, generator.config
        captions = read_captions(how.captions)
        check_conditions(generator, how.classes, captions, unconditional=sampling.unconditional)
        ids = drawn_ids(generator, how)
        self.length, self.prefixes = _lengths(generator, how)
        self.guidance = guidance_of(generator, sampling) if guidance is None else guidance
        guided = self.guidance.scale != 1 and self.guidance.weak_model is None
        if guided and not generator.label_embed.has_null:
            raise InputError(
                "--guidance: this generator was trained without class dropout and cannot be guided; pass 1"
            )
        self.num_classes = config.num_classes if is_conditional(config) and not sampling.unconditional else 0
        condition = None if sampling.unconditional else text_condition(config)
        if condition is not None and condition.kind == "words":
            CaptionIds(condition, captions).check("--captions")
        self.embed = None if condition is None else caption_reader(condition, captions)
        conditions: Sequence[int | str] = captions or [0]
        if self.num_classes:
            conditions = ids
        self.keys = [(each, copy) for each in conditions for copy in range(how.num)]
        token_counts(tokenizer.spec, [self.length, *self.prefixes])
        classes = model_classes(generator) if self.num_classes else Classes(0)
        self.conditioning = conditioning_of(tokenizer, classes, captioned=self.embed is not None)
        self.settings = sampling.settings
        self.settings.check_read_by(generator.kind, config.name, "--")
        self.decoder_options = decoder_options(tokenizer, how.decoding, "--decoder-")
        self.plan = plan_of(how.searching, generator, tokenizer)
        self.search: Search | None = None
        self.lengths: Tensor | None = None

    def use(self, verifier: Scoring) -> None:
        """Search for the samples that the settings ask for with this verifier."""
        assert self.plan is not None, "only called where the settings ask for a search"
        self.search = Search(self, self.plan, verifier)

    def tokens(self, keys: Sequence[Key]) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, K, ...) of samples, and their numbers (B,) where the generator stops by itself."""
        assert self.search is not None or self.plan is None, "a search needs a verifier, see `use`"
        if self.search is not None:
            return self.search.tokens(keys)
        return self.generator.sample_ragged(**self.arguments(keys))

    def growing(self, keys: Sequence[Key]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The first 1, 2, ..., K tokens of the same samples and their numbers, by a causal generator."""
        assert isinstance(self.generator, CausalGenerator)
        if self.generator.stop is None:
            for tokens in self.generator.sample_steps(**self.arguments(keys)):
                yield tokens, None
            return
        args, own = self.generator.checked_arguments(**self.arguments(keys))
        found = Sequences(self.generator, *args, **own)
        for _ in range(args[1]):
            found.extend()
            yield found.tokens, found.lengths

    def decode(self, tokens: Tensor, keys: Sequence[Key], keep: int, lengths: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) from the first `keep` tokens of samples, or fewer where they have fewer, on the CPU."""
        kept = keep if lengths is None else lengths.clamp(max=keep)
        noise = [noise_of(self.how.seed, 1, *key) for key in keys]
        given = self.conditioning.of(self._cond(keys), self.generator.device)
        return self.tokenizer.decode(tokens, given, keep=kept, generator=noise, **self.decoder_options).cpu()

    @torch.no_grad()
    def draw(self, batch_size: int | None, progress: Progress | None = None) -> tuple[Tensor, dict[int, Tensor]]:
        """All samples: tokens (N, K, ...), and images (N, C, H, W) by the number of leading tokens that are decoded.

        The numbers of tokens of a generator that stops by itself are `lengths` afterwards.

        Args:
            batch_size: samples at once; None: 100, or half of it as often as the memory of a GPU does not suffice.
        """
        size, counts = batch_size or MOST, dict.fromkeys((self.length, *self.prefixes))
        if self.plan is not None:
            size = max(1, size // self.plan.most)
        tokens: list[Tensor] = []
        numbers: list[Tensor] = []
        images: dict[int, list[Tensor]] = {k: [] for k in counts}
        done = 0
        while done < len(self.keys):
            keys = self.keys[done : done + size]
            try:
                made, lengths = self.tokens(keys)
                decoded = {k: self.decode(made, keys, k, lengths) for k in counts}
            except torch.OutOfMemoryError:
                if batch_size is not None or size == 1:
                    raise
                size //= 2
                continue
            tokens.append(made.cpu())
            numbers += [] if lengths is None else [lengths.cpu()]
            for k, each in decoded.items():
                images[k].append(each)
            done += len(keys)
            if progress is not None:
                progress(done, len(self.keys))
        self.lengths = torch.cat(numbers) if numbers else None
        return torch.cat(tokens), {k: torch.cat(each) for k, each in images.items()}

    @property
    def labels(self) -> list[Label]:
        """The different labels of all samples."""
        return list(dict.fromkeys(map(self.label, self.keys)))

    def label(self, key: Key) -> Label:
        """The name of a sample's class, its number if the names are unknown, or its caption; None without either."""
        if self.num_classes:
            names = class_names(self.generator)
            return names[int(key[0])] if names else key[0]
        return None if self.embed is None else key[0]

    def _cond(self, keys: Sequence[Key]) -> Tensor | None:
        device = self.generator.device
        if self.embed is not None:
            return self.embed([str(caption) for caption, _ in keys], device)
        return torch.tensor([label for label, _ in keys], device=device) if self.num_classes else None

    def arguments(self, keys: Sequence[Key], lane: int = 0) -> dict[str, Any]:
        """The arguments of `Generator.sample` for samples, or for another candidate (lane) of each."""
        candidate = [f"candidate {lane}"] if lane else []
        return {
            "cond": self._cond(keys),
            "num": len(keys),
            "length": None if self.generator.parallel else self.how.keep,
            "generator": [noise_of(self.how.seed, 0, *key, *candidate) for key in keys],
            "guidance": self.guidance,
            "settings": self.settings,
        }

    def name(self, key: tuple[int | str, int], number: int) -> str:
        """The file name of the sample with this number."""
        condition, copy = key
        if self.num_classes:
            return f"class{condition:03d}_{copy:03d}.png"
        return f"image{'' if self.embed is None else f'{number // self.how.num:03d}_'}{copy:03d}.png"


def drawn_ids(generator: Generator, how: SamplePictures) -> list[int]:
    """The ids of the classes to sample, by default all; raises InputError for classes that the generator lacks."""
    classes = model_classes(generator)
    return chosen(how.classes, classes, "--classes") if how.classes else list(range(classes.num))


def classes_text(generator: Generator, how: SamplePictures) -> str:
    """One line: the classes to sample, "classes: car (index 0), 2 (index 4)"; "" without classes.

    Raises:
        InputError: classes that the generator does not have.
    """
    check_conditions(generator, how.classes, how.captions, unconditional=how.unconditional)
    if how.unconditional or not generator.config.num_classes:
        return ""
    return drawn(drawn_ids(generator, how), model_classes(generator))


def _lengths(generator: Generator, how: SamplePictures) -> tuple[int, list[int]]:
    """The number of tokens of a sample, and the further numbers of tokens to decode from."""
    most = generator.config.num_tokens
    if how.keep is not None and how.keep > most:
        raise InputError(f"--keep: expected 1..{most}, got {how.keep}")
    length = how.keep or most
    if how.decode_keep == "every":
        return length, list(range(1, length + 1))
    return length, parse_counts(how.decode_keep, "--decode-keep", 0, length) if how.decode_keep else []


@dataclass(frozen=True, eq=False, repr=False)
class Samples:
    """Generated images; a notebook shows an overview of them.

    Args:
        images: (N, C, H, W) in [0, 1], on the CPU.
        tokens: (N, K, D) or ids (N, K), on the CPU.
        labels: the class or caption of each image, None without either.
        settings: guidance, seed and others that were given.
        columns: images of each class or caption.
        lengths: numbers of tokens (N,) of a generator that stops by itself; None: all have K.
        scores: (N,) of the verifier of a search, float64; None without a search.
        calls: network calls of a search for a sample, by network, see `Search`.
    """

    images: Tensor
    tokens: Tensor
    labels: list[str | int | None]
    settings: dict[str, object]
    columns: int
    lengths: Tensor | None = None
    scores: Tensor | None = None
    calls: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        names = [str(label) for label in dict.fromkeys(self.labels) if label is not None]
        of = f" of {shortened(names)}" if names else ""
        given = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        shape = "x".join(map(str, self.images.shape[1:]))
        return f"Samples({len(self)} images {shape}{of}; tokens {tuple(self.tokens.shape)}; {given})"

    def to_pil(self) -> list[Image]:
        """The images as PIL images of mode "L" or "RGB"."""
        return to_pil(self.images)

    def overview(self) -> Image:
        """One picture of all images with their labels, a row for each class or caption."""
        labels = None if None in self.labels else self.labels
        return show(self.images, labels, columns=min(self.columns, 12))

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.overview().save(buffer, format="PNG")
        return buffer.getvalue()

    def _repr_html_(self) -> str:
        return f'<img src="{data_uri(self.overview())}" alt="samples"><br><small>{escape(repr(self))}</small>'


def generate(
    generator: Generator,
    conditions: Sequence[str | int] | str | int | None = None,
    *,
    tokenizer: str | Path | nn.Module | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
    opened: Callable[[Drawing], Scoring] | None = None,
    **settings: object,
) -> Samples:
    """See `Generator.generate`.

    Args:
        opened: the verifier for a search, where the settings ask for one.
        settings: fields of `SamplePictures`.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size: expected at least 1, got {batch_size}")
    drawing = _drawing(generator, conditions, tokenizer, settings)
    if drawing.plan is not None:
        assert opened is not None, "a search needs a verifier"
        drawing.use(opened(drawing))
    tokens, images = drawing.draw(batch_size, progress)
    shown = {"seed": drawing.how.seed, "guidance": f"{drawing.guidance.scale:g}"}
    shown |= {name: value for name, value in settings.items() if name not in (*shown, "num") and value is not None}
    labels = [drawing.label(key) for key in drawing.keys]
    found = Samples(images[drawing.length], tokens, labels, shown, drawing.how.num, drawing.lengths)
    if drawing.search is None:
        return found
    calls = {name: rows / len(found) for name, rows in drawing.search.calls.items()}
    return dataclasses.replace(found, scores=torch.cat(drawing.search.scores), calls=calls)


def stream(
    generator: Generator,
    conditions: Sequence[str | int] | str | int | None = None,
    *,
    tokenizer: str | Path | nn.Module | None = None,
    **settings: object,
) -> Iterator[Tensor]:
    """See `Generator.stream`."""
    if not isinstance(generator, CausalGenerator):
        raise InputError(
            f"stream: expected a generator of one token after the other, a {generator.config.name} makes all tokens at "
            "once; use generate"
        )
    if settings.get("search"):
        raise InputError(f"search: stream shows one sample as it grows, leave it out; got {settings['search']}")
    drawing = _drawing(generator, conditions, tokenizer, settings)
    if not drawing.tokenizer.spec.ordered:
        raise InputError(
            "stream: expected a tokenizer of ordered tokens, this one decodes all tokens only; use generate"
        )
    return _growing(drawing)


@torch.no_grad()
def _growing(drawing: Drawing) -> Iterator[Tensor]:
    for count, (tokens, lengths) in enumerate(drawing.growing(drawing.keys), start=1):
        yield drawing.decode(tokens, drawing.keys, count, lengths)


def _drawing(
    generator: Generator,
    conditions: Sequence[str | int] | str | int | None,
    tokenizer: str | Path | nn.Module | None,
    settings: dict[str, Any],
) -> Drawing:
    known = {field.name for field in dataclasses.fields(SamplePictures)} - {"classes", "captions", "batch_size"}
    known -= {"nearest", "decode_keep", "verifier", "judge"}
    for name in settings.keys() - known:
        near = nearest(name, known)
        advice = f"; did you mean {near[0]}?" if near else f"; settings are {', '.join(sorted(known))}"
        raise InputError(f"{name}: generate has no such setting{advice}")
    for name, least in (("num", 1), ("keep", 1), ("seed", 0)):
        value = settings.get(name)
        if value is not None and (not isinstance(value, int) or value < least):
            raise InputError(f"{name}: expected a whole number from {least} on, got {value!r}")
    parts = () if conditions is None else (conditions,) if isinstance(conditions, str | int) else tuple(conditions)
    captioned = text_condition(generator.config) is not None
    given: dict[str, Any] = {"captions": tuple(map(str, parts))} if captioned else {"classes": parts}
    how = SamplePictures(**given, **settings)
    drawing = Drawing(generator, _tokenizer(generator, tokenizer), how, None)
    drawing.conditioning.say()
    return drawing


def _tokenizer(generator: Any, given: str | Path | nn.Module | None) -> Any:
    """The tokenizer of a generator: the given one, else that of `load_pair`, else the one that its card names."""
    if isinstance(given, nn.Module):
        found = given
    elif given is None and generator.partner:
        (found,) = generator.partner
    elif not hasattr(generator, "card"):
        raise InputError("tokenizer: expected one for a generator that was not loaded; pass tokenizer=")
    else:
        found = tokenizer_of(generator, given)
    if given is None:
        generator.partner = (found,)
    return found.to(generator.device)

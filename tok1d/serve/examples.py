"""Example pictures and training images: of a data set on this machine, or drawn here. Nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from threading import RLock

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from tok1d.data import emoji_font, fashion_mnist
from tok1d.data.base import ImageSet
from tok1d.data.source import BY_NAME
from tok1d.data.subset import subset
from tok1d.errors import DataError, InputError, Tok1dError
from tok1d.images.convert import to_tensor
from tok1d.images.framing import padding_of, trained_with
from tok1d.inference import images as sources
from tok1d.inference.nearest import Training, too_many
from tok1d.pictures import to_pil
from tok1d.serve.models import known_condition, names_of
from tok1d.zoo.loaded import LoadedGenerator, LoadedTokenizer

NUM = 12  # examples that are shown
MEAN_OF = 64  # pictures over which mean tokens are taken


@dataclass(frozen=True)
class Example:
    """A picture, and the text of its class or caption; "" if the tokenizer reads none, or knows no word of it."""

    picture: Image.Image
    condition: str


class Examples:
    """Example pictures and training images by tokenizer.

    Args:
        data: the data set; None: that of the tokenizer's card, if it is one that needs no path and is here.
    """

    def __init__(self, data: str | None = None) -> None:
        self.data = data
        self._shown: dict[int, list[Example]] = {}
        self._means: dict[int, Tensor] = {}
        self._training: dict[int, Training] = {}
        self._lock = RLock()

    def of(self, tokenizer: LoadedTokenizer) -> list[Example]:
        """Test images of the data set, spread over it; drawn pictures where it is not here."""
        with self._lock:
            if id(tokenizer) not in self._shown:
                self._shown[id(tokenizer)] = self._made(tokenizer)
            return self._shown[id(tokenizer)]

    def mean_tokens(self, tokenizer: LoadedTokenizer) -> Tensor | None:
        """The mean tokens (K, D) of some pictures, encoded without a condition; None for ids.

        They are test images, or the drawn pictures.
        """
        if tokenizer.spec.vocab_size is not None:
            return None
        with self._lock:
            if id(tokenizer) not in self._means:
                images = self._open(tokenizer, "test")
                if images is None:
                    pictures = to_tensor([each.picture for each in self.of(tokenizer)], tokenizer)
                else:
                    some = subset(images, MEAN_OF)
                    pictures = some.batch(range(len(some)))[0].to(next(tokenizer.parameters()).device)
                with torch.no_grad():
                    self._means[id(tokenizer)] = tokenizer.encode(pictures).mean(0)
            return self._means[id(tokenizer)]

    def training(self, tokenizer: LoadedTokenizer, generator: LoadedGenerator) -> Training:
        """The training images of a generator.

        Raises:
            InputError: they are not here, or too many.
        """
        with self._lock:
            if id(tokenizer) not in self._training:
                images = self._open(tokenizer, "train", generator)
                if images is None:
                    name = self.data or trained_with(generator, "name", "")
                    raise InputError(
                        f"nearest: the training images ({name or 'unknown'}) are not on this machine; "
                        "tok1d serve --data DATA names them"
                    )
                if reason := too_many(images):
                    raise InputError(f"nearest: {reason}")
                self._training[id(tokenizer)] = Training(images, padding_of(tokenizer))
            return self._training[id(tokenizer)]

    def _open(
        self, tokenizer: LoadedTokenizer, split: str, generator: LoadedGenerator | None = None
    ) -> ImageSet | None:
        """A split of the data; None if it is not here."""
        name = self.data or trained_with(tokenizer, "name", "")
        root = None
        if name in BY_NAME:
            place = fashion_mnist.here() if name == "fashion_mnist" else emoji_font.here()
            if place is None:
                return None
            root = str(place)
        elif not self.data:
            return None
        try:
            return sources.open_data(name, tokenizer, split=split, data_root=root, generator=generator, report=False)
        except Tok1dError as error:
            if self.data:
                raise DataError(f"--data: {error}") from None
            return None

    def _made(self, tokenizer: LoadedTokenizer) -> list[Example]:
        images = self._open(tokenizer, "test")
        if images is None:
            return [Example(picture, "") for picture in drawn()]
        images = subset(images, NUM)
        captions = getattr(images, "captions", [])
        names = names_of(tokenizer) if tokenizer.spec.needs_label and not tokenizer.spec.reads_captions else ()
        found = []
        for i in range(len(images)):
            x, label = images.batch([i])
            condition = ""
            if tokenizer.spec.reads_captions and captions:
                condition = known_condition(tokenizer, captions[i])
            elif names and images.class_names[int(label[0])] in names:
                condition = images.class_names[int(label[0])]
            found.append(Example(to_pil(x[0]), condition))
        return found


def drawn() -> list[Image.Image]:
    """Simple pictures of 128 x 128 pixels, in mode "RGB"."""
    side, found = 128, []
    for background, colour in (("white", "crimson"), ("navy", "gold"), ("lightgrey", "darkgreen")):
        for shape in ("ellipse", "rectangle", "polygon", "stripes"):
            image = Image.new("RGB", (side, side), background)
            draw = ImageDraw.Draw(image)
            if shape == "ellipse":
                draw.ellipse((24, 24, 104, 104), fill=colour)
            elif shape == "rectangle":
                draw.rectangle((32, 20, 96, 108), fill=colour)
            elif shape == "polygon":
                draw.polygon([(64, 16), (112, 108), (16, 108)], fill=colour)
            else:
                for left in range(0, side, 32):
                    draw.rectangle((left, 0, left + 15, side), fill=colour)
            found.append(image)
    return found

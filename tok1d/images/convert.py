"""`to_tensor` and `to_pil`: from pictures of any kind to (B, C, H, W) in [0, 1] as a model was trained, and back."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from tok1d import pictures
from tok1d.data.transforms import UPRIGHT, Transform, decode_image, flatten
from tok1d.errors import InputError, reason_of
from tok1d.files import as_path
from tok1d.images.framing import framing_of
from tok1d.nn.values import has_values

One = Image.Image | str | PathLike[str] | np.ndarray | Tensor
Pictures = One | Sequence[One]

CHANNELS = (1, 2, 3, 4)  # grey, grey with alpha, RGB, RGBA
GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue (ITU-R 601), as PIL's
EXPECTED = "a PIL image, a path, an array (H, W) or (H, W, C), a tensor (C, H, W) or (B, C, H, W), or a list of these"
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16")
SLACK = 1e-3  # how far rounding may leave [0, 1]


class HasImages(Protocol):
    """A model of images: its configuration states `image_size` and `channels`."""

    @property
    def config(self) -> object: ...


def to_tensor(x: Pictures, model: HasImages | None = None) -> Tensor:
    """Pictures as float32 (B, C, H, W) in [0, 1], with a model as its training images were made.

        >>> import numpy as np
        >>> from PIL import Image
        >>> to_tensor(Image.new("RGB", (40, 30), "red")).shape
        torch.Size([1, 3, 30, 40])
        >>> to_tensor([np.zeros((28, 28), np.uint8)] * 2).shape
        torch.Size([2, 1, 28, 28])

    Args:
        x: a PIL image of any mode; the path of an image file; a numpy array (H, W), (H, W, C) or (B, H, W, C), also
            with channels first; a tensor (H, W), (C, H, W) or (B, C, H, W); or a list of these. Arrays and tensors are
            uint8, or floating point in [0, 1]. C is 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA).
        model: a tokenizer. Pictures get its channels, are composited over its background where they are transparent,
            cropped (or fitted) and resized to its size, with its border, as in its training. Arrays and tensors that
            have the model's size already are not resized; those of another size are rounded to 8 bits first. The
            result is on the model's device. None: nothing is resized, transparency is white, and there is one channel
            if all pictures are grey, else 3.

    Raises:
        InputError: another type or shape, values out of range or undefined, or sizes that differ without a model.
        DataError: a file that cannot be read.
    """
    parts: list[Any] = list(x) if isinstance(x, list | tuple) else [x]
    if not parts:
        raise InputError(f"images: expected {EXPECTED}, got an empty list")
    if model is not None:
        config, framing = model.config, framing_of(model)
        transform = Transform(_number(config, "image_size"), _number(config, "channels"), **framing)
        made = torch.cat([_framed(part, transform) for part in parts])
        parameter = next(iter(getattr(model, "parameters", tuple)()), None)
        return made if parameter is None else made.to(parameter.device)
    batches = [_unframed(part) for part in parts]
    most = max(batch.shape[1] for batch in batches)
    sizes = sorted({(batch.shape[2], batch.shape[3]) for batch in batches})
    if len(sizes) > 1:
        shown = " and ".join(f"{height}x{width}" for height, width in sizes[:2])
        raise InputError(f"images: expected one size without a model, got {shown}; pass model= to resize them")
    return torch.cat([batch.expand(-1, most, -1, -1) for batch in batches])


def to_pil(images: Tensor | np.ndarray) -> list[Image.Image]:
    """Images (B, C, H, W), or one (C, H, W), in [0, 1] as a list of PIL images of mode "L" or "RGB".

        >>> import torch
        >>> to_pil(torch.rand(2, 3, 8, 8))[0].size
        (8, 8)

    Values outside [0, 1] are clamped. Any array that `to_tensor` reads is accepted.

    Raises:
        InputError: another type or shape.
    """
    if not isinstance(images, Tensor):
        return [pictures.to_pil(image) for image in to_tensor(images)]
    batch = images.detach()
    batch = batch[None] if batch.dim() == 3 else batch
    if batch.dim() != 4 or batch.shape[1] not in (1, 3):
        raise InputError(f"images: expected (B, 1 or 3, H, W) in [0, 1], got {tuple(images.shape)}")
    return [pictures.to_pil(image) for image in batch]


def check_range(images: Tensor) -> None:
    """Raise InputError on images that are not floating point, finite and in [0, 1]; the message has the remedy.

    Tensors without values (on the meta device, or while a graph is traced) pass.
    """
    if not images.is_floating_point():
        raise InputError(f"images: expected floating point in [0, 1] or uint8, got {images.dtype}; x / 255 for 0..255")
    if not has_values(images):
        return
    low, high = (float(value) for value in images.detach().aminmax())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError("images: expected finite values in [0, 1], got NaN or infinity")
    if low < -SLACK or high > 1 + SLACK:
        advice = "use x.clamp(0, 1)"
        if high > 2:
            advice = "divide by 255, or give uint8"
        elif low < -0.5:
            advice = "use (x + 1) / 2 for images in [-1, 1]"
        raise InputError(f"images: expected values in [0, 1], got {low:.3g} to {high:.3g}; {advice}")


def _number(config: object, name: str) -> int:
    value = getattr(config, name, None)
    if not isinstance(value, int):
        raise InputError(f"model: expected a model of images, whose configuration has {name}; got one without")
    return value


def _framed(part: One, transform: Transform) -> Tensor:
    """A picture, or a batch of them, as float32 (B, channels, size, size)."""
    if isinstance(part, np.ndarray | Tensor):
        batch = _batch_of(part)
        floats = _coloured(batch, transform)
        if floats.shape[-2:] == (transform.size,) * 2:
            return floats
        if floats.shape[-2:] == (transform.inner,) * 2:
            return transform.border(floats)
        return torch.cat([_by_pil(pictures.to_pil(image), transform) for image in floats])
    return _by_pil(_opened(part, transform.channels, transform.rgb), transform)


def _unframed(part: One) -> Tensor:
    """A picture, or a batch of them, as float32 (B, 1 or 3, H, W) of its own size, transparent parts white."""
    if isinstance(part, np.ndarray | Tensor):
        batch = _batch_of(part)
        return _coloured(batch, Transform(1, 1 if batch.shape[1] < 3 else 3))
    with_colour = _opened(part, 3, (255, 255, 255))
    array = np.array(with_colour.convert("L") if _is_grey(part) else with_colour)
    return _batch_of(array).float() / 255


def _is_grey(part: Image.Image | str | PathLike[str]) -> bool:
    if isinstance(part, Image.Image):
        return part.mode in GREY_MODES
    with Image.open(as_path(str(part))) as image:
        return image.mode in GREY_MODES


def _by_pil(image: Image.Image, transform: Transform) -> Tensor:
    try:
        return transform(image)[None].float().div_(255)
    except ValueError as error:
        raise InputError(f"images: {reason_of(error)}") from None


def _opened(part: One, channels: int, background: tuple[int, int, int]) -> Image.Image:
    """A PIL image, or that of a file, upright and without transparency."""
    if isinstance(part, str | PathLike):
        return decode_image(Path(as_path(str(part))), channels, background)
    if not isinstance(part, Image.Image):
        raise InputError(f"images: expected {EXPECTED}, got {type(part).__name__}")
    turn = UPRIGHT.get(part.getexif().get(ExifTags.Base.Orientation, 1))
    try:
        return flatten(part if turn is None else part.transpose(turn), channels, background)
    except ValueError as error:
        raise InputError(f"images: a PIL image of mode {part.mode}: {reason_of(error)}") from None


def _batch_of(given: np.ndarray | Tensor) -> Tensor:
    """An array or tensor as (B, C, H, W), uint8 or checked float32."""
    first = isinstance(given, Tensor)  # tensors have their channels first, arrays last, where both are possible
    shape = tuple(given.shape)
    if not isinstance(given, Tensor) and given.dtype.kind not in "uifb":
        raise InputError(f"images: expected an array of numbers, got {given.dtype}")
    x = given.detach() if isinstance(given, Tensor) else torch.from_numpy(np.array(given, order="C"))
    if x.dim() == 2:
        x = x[None, None]
    elif x.dim() in (3, 4):
        at = [i for i in ((-3, -1) if first else (-1, -3)) if x.shape[i] in CHANNELS]
        if not at:
            raise InputError(
                f"images: expected 1 to 4 channels, first or last, got the shape {shape}; a batch of grey images is "
                f"x[{':, None' if first else '..., None'}]"
            )
        x = x.movedim(at[0], -3)
        x = x[None] if x.dim() == 3 else x
    else:
        raise InputError(f"images: expected {EXPECTED}, got the shape {shape}")
    if not x.numel():
        raise InputError(f"images: expected pixels, got the shape {shape}")
    if x.dtype == torch.uint8:
        return x
    x = x.float() if x.is_floating_point() or x.dtype == torch.bool else x
    check_range(x)
    return x


def _coloured(batch: Tensor, transform: Transform) -> Tensor:
    """(B, C, H, W) as float32 with the transform's channels, composited over its background."""
    x = batch.float() / 255 if batch.dtype == torch.uint8 else batch
    if x.shape[1] in (2, 4):
        colour, alpha = x[:, :-1], x[:, -1:]
        behind = x.new_tensor(transform.rgb)[None, :, None, None] / 255
        x = colour * alpha + behind * (1 - alpha)
    if x.shape[1] == transform.channels:
        return x.contiguous()
    if transform.channels == 1:
        return (x * x.new_tensor(GREY)[None, :, None, None]).sum(1, keepdim=True).clamp(0, 1)
    return x.repeat(1, transform.channels, 1, 1)

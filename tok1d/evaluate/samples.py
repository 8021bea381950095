"""Images that an evaluation keeps, only when asked: one file in ADM's form, or a folder of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from torch import Tensor

from tok1d.errors import ConfigError, DataError
from tok1d.evaluate.sample_batch import write_sample_batch
from tok1d.pictures import save_png, to_pil, to_uint8


@dataclass(frozen=True)
class Save:
    """Where images go.

    Args:
        batch: an .npz file that the ADM suite's evaluator reads.
        folder: of pictures 000000.png, 000001.png, ..., by the number of the image.

    Raises:
        ConfigError: a file of another kind, or a folder that holds something else.
    """

    batch: Path | None = None
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.batch is not None and (self.batch.suffix != ".npz" or self.batch.is_dir()):
            raise ConfigError(f"--save-samples: expected the name of an .npz file, received {self.batch}")
        if self.folder is not None and self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"--save-images: expected a folder to write into, found the file {self.folder}")

    def columns(self, images: Tensor, numbers: range) -> dict[str, Tensor]:
        """Pictures are written; what goes into one file is kept with the block."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            for number, image in zip(numbers, images):
                save_png(to_pil(image), self.folder / f"{number:06d}.png")
        return {} if self.batch is None else {"images": to_uint8(images)}


@contextmanager
def saving(save: Save | None, num: int) -> Iterator[Callable[[Mapping[str, Tensor], range], None]]:
    """Collects the images of all blocks in order and writes their file at the end, if one is asked for."""
    if save is None or save.batch is None:
        yield lambda columns, numbers: None
        return
    shapes: list[tuple[int, ...]] = []
    try:
        with TemporaryFile(dir=save.batch.parent if save.batch.parent.is_dir() else None) as file:

            def keep(columns: Mapping[str, Tensor], numbers: range) -> None:
                pixels = columns["images"].numpy()
                shapes.append(pixels.shape)
                file.write(pixels.tobytes())

            yield keep
            file.seek(0)
            write_sample_batch(save.batch, (_image_batch(file.read, shape) for shape in shapes), num)
    except OSError as error:
        raise DataError(f"{save.batch}: cannot write the samples: {error.strerror or error}; free space") from error


def _image_batch(read: Callable[[int], bytes], shape: tuple[int, ...]) -> Tensor:
    pixels = np.frombuffer(read(int(np.prod(shape))), np.uint8).reshape(shape)
    return torch.from_numpy(pixels.copy()).float() / 255

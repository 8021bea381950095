"""Saving of the images of an evaluation: in one file that ADM's evaluator reads, or as PNG files in a folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from torch import Tensor

from tok1d.errors import ConfigError, DataError, reason_of
from tok1d.evaluate.job import remove_temporary
from tok1d.evaluate.sample_batch import write_sample_batch
from tok1d.files import write_text
from tok1d.pictures import save_png, to_pil, to_uint8

MARKER = ".evaluation"  # file in the folder of PNG files with the name of their job
_PICTURE = re.compile(r"\d{6,}\.png")


@dataclass(frozen=True)
class Save:
    """Where to save images.

    Args:
        batch: an .npz file that the ADM suite's evaluator reads.
        folder: for PNG files 000000.png, 000001.png, ..., named after the number of the image.

    Raises:
        ConfigError: a path of another kind, or a folder that holds other files.
    """

    batch: Path | None = None
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.batch is not None and (self.batch.suffix != ".npz" or self.batch.is_dir()):
            raise ConfigError(f"--save-samples: expected the name of an .npz file, got {self.batch}")
        if self.folder is not None and self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"--save-images: expected a folder to write into, got the file {self.folder}")
        if other := next((name for name in self._there() if not _PICTURE.fullmatch(name)), None):
            raise ConfigError(
                f"--save-images: expected a folder without other files, got {other} in {self.folder}; choose another"
            )

    def _there(self) -> list[str]:
        if self.folder is None or not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("."))

    def begin(self, job: str) -> None:
        """Write the name of the job into the folder, before any image is written.

        Raises:
            ConfigError: the folder holds images of another job.
            DataError: the folder cannot be written.
        """
        if self.folder is None:
            return
        there, marker = (
            self._there(),
            self.folder / MARKER,
        )  # in this order: other processes write images only after the marker
        try:
            if there and not (marker.is_file() and marker.read_text(encoding="utf-8") == job):
                raise ConfigError(
                    f"--save-images: {self.folder} has images of another evaluation; remove them, or choose another"
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(marker, job)
        except OSError as error:
            raise DataError(f"{self.folder}: cannot write images there: {reason_of(error)}") from None

    def check(self, num: int) -> None:
        """Raise DataError if images of finished blocks are missing in the folder."""
        if self.folder is None:
            return
        remove_temporary(self.folder / MARKER)
        gone = sorted({f"{number:06d}.png" for number in range(num)} - {*self._there()})
        if gone:
            raise DataError(
                f"{self.folder}: expected {num} images, {len(gone)} of finished blocks are missing, such as "
                f"{gone[0]}; remove the folder of blocks (.parts) and run again"
            )

    def columns(self, images: Tensor, numbers: range) -> dict[str, Tensor]:
        """Write images (B, C, H, W) in [0, 1] as PNG files; return their pixels if an .npz file is wanted."""
        if self.folder is not None:
            for number, image in zip(numbers, images):
                save_png(to_pil(image), self.folder / f"{number:06d}.png")
        return {} if self.batch is None else {"images": to_uint8(images)}


@contextmanager
def saving(save: Save | None, num: int) -> Iterator[Callable[[Mapping[str, Tensor], range], None]]:
    """Yield a function that collects the images of all blocks in order; at the end write the .npz file, if requested.

    Raises:
        DataError: the file cannot be written, or PNG files are missing.
    """
    if save is None or save.batch is None:
        yield lambda columns, numbers: None
        if save is not None:
            save.check(num)
        return
    shapes: list[tuple[int, ...]] = []
    try:
        with TemporaryFile(dir=save.batch.parent if save.batch.parent.is_dir() else None) as file:

            def keep(columns: Mapping[str, Tensor], numbers: range) -> None:
                pixels = columns["images"].numpy()
                shapes.append(pixels.shape)
                file.write(pixels.tobytes())

            yield keep
            save.check(num)
            file.seek(0)
            write_sample_batch(save.batch, (_image_batch(file.read, shape) for shape in shapes), num)
    except OSError as error:
        raise DataError(f"{save.batch}: cannot write the samples: {reason_of(error)}; free space") from error


def _image_batch(read: Callable[[int], bytes], shape: tuple[int, ...]) -> Tensor:
    pixels = np.frombuffer(read(int(np.prod(shape))), np.uint8).reshape(shape)
    return torch.from_numpy(pixels.copy()).float() / 255

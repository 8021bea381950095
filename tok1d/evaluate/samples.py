"""Images that an evaluation keeps, only when asked: one file in ADM's form, or a folder of pictures."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from torch import Tensor

from tok1d.errors import ConfigError, DataError
from tok1d.evaluate.job import drop_torn
from tok1d.evaluate.sample_batch import write_sample_batch
from tok1d.pictures import save_png, to_pil, to_uint8

MARKER = ".evaluation"  # in a folder of pictures: the name of the job that they are of
_PICTURE = re.compile(r"\d{6,}\.png")


@dataclass(frozen=True)
class Save:
    """Where images go.

    Args:
        batch: an .npz file that the ADM suite's evaluator reads.
        folder: of pictures 000000.png, 000001.png, ..., by the number of the image.

    Raises:
        ConfigError: a file of another kind, or a folder that holds anything but pictures.
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
                f"--save-images: expected a folder for pictures alone, got {other} in {self.folder}; choose another"
            )

    def _there(self) -> list[str]:
        if self.folder is None or not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("."))

    def begin(self, job: str) -> None:
        """Mark the folder as one of this job's pictures, before any is written.

        Raises:
            ConfigError: it holds those of another job, which would stay among them.
            DataError: it cannot be written.
        """
        if self.folder is None:
            return
        there, marker = self._there(), self.folder / MARKER  # in that order: who writes pictures has marked it before
        try:
            if there and not (marker.is_file() and marker.read_text() == job):
                raise ConfigError(
                    f"--save-images: {self.folder} holds pictures of another evaluation; remove them, or choose another"
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = marker.with_name(f".{MARKER}.{os.getpid()}.tmp")
            temporary.write_text(job)
            os.replace(temporary, marker)
        except OSError as error:
            raise DataError(f"{self.folder}: cannot write pictures there: {error.strerror or error}") from None

    def check(self, num: int) -> None:
        """Raise DataError where a picture is gone that a finished block had written."""
        if self.folder is None:
            return
        drop_torn(self.folder / MARKER)
        gone = sorted({f"{number:06d}.png" for number in range(num)} - {*self._there()})
        if gone:
            raise DataError(
                f"{self.folder}: expected {num} pictures, {len(gone)} of finished blocks are gone, such as {gone[0]}; "
                "remove the folder of blocks (.parts) and run again"
            )

    def columns(self, images: Tensor, numbers: range) -> dict[str, Tensor]:
        """Pictures are written; what goes into one file is kept with the block."""
        if self.folder is not None:
            for number, image in zip(numbers, images):
                save_png(to_pil(image), self.folder / f"{number:06d}.png")
        return {} if self.batch is None else {"images": to_uint8(images)}


@contextmanager
def saving(save: Save | None, num: int) -> Iterator[Callable[[Mapping[str, Tensor], range], None]]:
    """Collects the images of all blocks in order and writes their file at the end, if one is asked for.

    Raises:
        DataError: it cannot be written, or pictures are gone.
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
        raise DataError(f"{save.batch}: cannot write the samples: {error.strerror or error}; free space") from error


def _image_batch(read: Callable[[int], bytes], shape: tuple[int, ...]) -> Tensor:
    pixels = np.frombuffer(read(int(np.prod(shape))), np.uint8).reshape(shape)
    return torch.from_numpy(pixels.copy()).float() / 255

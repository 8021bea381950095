"""Sample batches as the ADM suite reads them: an .npz file with uint8 images (N, H, W, 3) in arr_0."""

from __future__ import annotations

import hashlib
import struct
import zipfile
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tok1d.errors import DataError, reason_of
from tok1d.evaluate.features import to_rgb
from tok1d.evaluate.npz import open_npz, reading
from tok1d.files import replacing
from tok1d.pictures import to_uint8

KEY = "arr_0"
_EXPECTED = f"an .npz file with images in {KEY}, as the ADM suite reads"
_LOCAL_HEADER = 30  # length in bytes of the fixed part of a zip entry's header, before name and extra field


def write_sample_batch(path: str | Path, batches: Iterable[Tensor], num: int) -> Path:
    """Write `num` images for ADM's evaluator atomically, with one batch in memory at a time.

    Args:
        batches: (B, 1 or 3, H, W) in [0, 1]; they are rounded to 8 bits, and a grey channel is repeated.

    Raises:
        DataError: another number of images than `num`, images of different sizes, or the file cannot be written.
    """
    path = Path(path)
    try:
        with (
            replacing(path) as temporary,
            zipfile.ZipFile(temporary, "w") as archive,
            archive.open(f"{KEY}.npy", "w", force_zip64=True) as file,
        ):
            shape, count = None, 0
            for batch in batches:
                pixels = to_uint8(to_rgb(batch)).permute(0, 2, 3, 1).contiguous().numpy()
                if shape is None:
                    shape = pixels.shape[1:]
                    header = {"descr": "|u1", "fortran_order": False, "shape": (num, *shape)}
                    np.lib.format.write_array_header_1_0(file, header)
                if pixels.shape[1:] != shape:
                    raise DataError(f"{path}: expected images of one shape {shape}, also got {pixels.shape[1:]}")
                count += len(pixels)
                file.write(pixels.tobytes())
            if count != num or shape is None:
                raise DataError(f"{path}: expected {num} images, at least one, got {count}")
    except OSError as error:
        raise DataError(
            f"{path}: cannot write the samples: {reason_of(error)}; choose another path or free space"
        ) from error
    return path


class SampleImages:
    """The images of a sample batch as an image set, memory-mapped if the file is not compressed.

    Raises:
        DataError: no such file, or a file without images (N, H, W, 3).
    """

    captions: list[str]

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with reading(self.path, _EXPECTED):
            with zipfile.ZipFile(self.path) as archive:
                self._info = archive.getinfo(f"{KEY}.npy")
            self.pixels = self._open()
        if self.pixels.ndim != 4 or self.pixels.shape[3] != 3 or self.pixels.dtype != np.uint8 or not len(self.pixels):
            raise DataError(
                f"{path}: expected uint8 images (N, H, W, 3) in {KEY}, got {self.pixels.dtype} {self.pixels.shape}"
            )
        self.class_names, self.num_classes, self.captions = ["unknown"], 1, [""] * len(self.pixels)

    def _open(self) -> np.ndarray:
        if self._info.compress_type != zipfile.ZIP_STORED:
            with open_npz(self.path, _EXPECTED) as content:
                return content[KEY]
        with self.path.open("rb") as file:
            file.seek(self._info.header_offset)
            name, extra = struct.unpack("<HH", file.read(_LOCAL_HEADER)[26:])
            file.seek(self._info.header_offset + _LOCAL_HEADER + name + extra)
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            if dtype.hasobject:
                raise ValueError("Python objects")
            return np.memmap(file, dtype, "r", file.tell(), shape, "F" if fortran else "C")

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: Sequence[int] | np.ndarray, *, seed: int = 0, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [0, 1], and labels (B,) of zeros, as the file has no labels."""
        pixels = torch.from_numpy(np.array(self.pixels[np.asarray(indices)]))
        return pixels.permute(0, 3, 1, 2).float().div_(255), torch.zeros(len(pixels), dtype=torch.int64)

    def captioned_batch(
        self, indices: Sequence[int] | np.ndarray, *, seed: int = 0, epoch: int = 0
    ) -> tuple[Tensor, Tensor, list[str]]:
        """As `batch`, with empty captions."""
        return *self.batch(indices), [""] * len(indices)

    def fingerprint(self) -> str:
        """16 hex digits: a hash of the pixels, which does not depend on name or compression of the file."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.pixels.shape).encode())
        for start in range(0, len(self.pixels), 1000):
            digest.update(np.ascontiguousarray(self.pixels[start : start + 1000]).data)
        return digest.hexdigest()[:16]

"""Pictures in and out: PIL images, files, numpy arrays and tensors to what models read, and back."""

from tok1d.images.convert import Pictures, check_range, to_pil, to_tensor
from tok1d.images.overview import show

__all__ = ["Pictures", "check_range", "show", "to_pil", "to_tensor"]

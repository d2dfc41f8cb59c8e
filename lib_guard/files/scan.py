"""Numbers in a file that are not finite."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open


class UnreadableFile(ValueError):
    """The file is no safetensors file that can be read."""


@dataclass(frozen=True)
class BadTensor:
    """A tensor with numbers that are not finite."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    infinite: int
    nan: int

    def describe(self) -> str:
        """One clause."""
        return f"{self.name} {list(self.shape)} holds {self.infinite} inf and {self.nan} NaN"


def first_not_finite(path: Path) -> BadTensor | None:
    """The first tensor that holds inf or NaN."""
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
                    infinite, nan = int(torch.isinf(tensor.float()).sum()), int(torch.isnan(tensor.float()).sum())
                    return BadTensor(name, tuple(tensor.shape), str(tensor.dtype), infinite, nan)
    except (SafetensorError, OSError) as error:
        raise UnreadableFile(str(type(error).__name__)) from error
    return None

"""Numbers in a model file that are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..tensors.dtypes import dtype_name
from ..wording import on_one_line
from .header import UnreadableFile

#: The format's own names of the dtypes that can hold inf or NaN. Integers and the floats below eight bits cannot.
_FLOATING = ("F64", "F32", "F16", "BF16", "F8_")

#: Numbers looked at in one go: what is upcast from float8 then takes 16 MB, however large its tensor is.
_PORTION = 1 << 22


@dataclass(frozen=True)
class BadTensor:
    """A tensor of a file that holds numbers which are not finite.

    name, shape: as in the file. dtype: `float16`. infinite, nan: how many of its numbers are inf or -inf, and NaN.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    infinite: int
    nan: int

    def describe(self) -> str:
        """`lora_unet_mid_block.lora_down.weight [4, 320] holds 12 inf and 3 NaN`, on one line whatever the name is."""
        counts = [f"{count} {kind}" for count, kind in ((self.infinite, "inf"), (self.nan, "NaN")) if count]
        shape = on_one_line(str(list(self.shape)), 60)
        return f"{on_one_line(self.name, 120)} {shape} holds {' and '.join(counts)}"


def first_not_finite(path: Path) -> BadTensor | None:
    """The first tensor of a safetensors file, in order of the names, that holds inf or NaN; None when there is none.

    Tensors are read one by one, and none after the one that is found. Float8 is upcast to float32; integers are not
    read. Whatever the file's name says, nothing but the safetensors format is read and nothing is unpickled.

    Raises `UnreadableFile`, and nothing else, for what is no such file.
    """
    name = on_one_line(path.name, 60) or "the file"
    try:
        if not path.is_file():  # a pipe would be waited for, and a folder is an error of another kind on each system
            raise UnreadableFile(f"{name} is not a file")
        return _first_in(path)
    # The library's own sentences hold the path, or bytes of the file.
    except SafetensorError:
        raise UnreadableFile(f"{name} is not a safetensors file, or a damaged one") from None
    except OSError:
        raise UnreadableFile(f"{name} cannot be opened") from None
    except (AttributeError, TypeError, RuntimeError):
        # In that order: a dtype that this version of torch has not got, a size beyond 64 bits, whatever torch refuses.
        raise UnreadableFile(f"{name} holds a tensor that this version of torch cannot read") from None


def _first_in(path: Path) -> BadTensor | None:
    with safe_open(str(path), framework="pt", device="cpu") as file:
        for name in sorted(file.keys()):
            if file.get_slice(name).get_dtype().startswith(_FLOATING):
                found = _look_at(name, file.get_tensor(name))
                if found is not None:
                    return found
    return None


def _look_at(name: str, tensor: torch.Tensor) -> BadTensor | None:
    infinite = nan = 0
    for portion in _portions(tensor):
        if not bool(torch.isfinite(portion).all()):
            infinite += int(torch.isinf(portion).sum())
            nan += int(torch.isnan(portion).sum())
    return BadTensor(name, tuple(tensor.shape), dtype_name(tensor.dtype), infinite, nan) if infinite or nan else None


def _portions(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensor's numbers in flat pieces, of a dtype that can be looked at."""
    for portion in torch.split(tensor.reshape(-1), _PORTION):
        yield portion.float() if tensor.element_size() == 1 else portion

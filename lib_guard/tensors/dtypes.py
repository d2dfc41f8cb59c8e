"""Which dtypes are computed in, and what they are called in a sentence."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import torch

#: The dtypes that arithmetic happens in. Everything else that a parameter may hold (float8, int8, uint8, packed
#: 4-bit) is storage: a layer of its own unpacks it, and nothing is ever cast *to* it.
COMPUTE_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def is_compute(tensor: torch.Tensor) -> bool:
    """Whether the tensor's dtype is one that arithmetic happens in."""
    return tensor.dtype in COMPUTE_DTYPES


def promoted(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The narrowest dtype that holds every value of all the given ones (float16 and bfloat16 give float32)."""
    return reduce(torch.promote_types, dtypes)


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.float16` -> `float16`."""
    return str(dtype).removeprefix("torch.")

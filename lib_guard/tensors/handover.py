"""What is handed over at a boundary: arguments on the way in, results on the way out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from .dtypes import is_compute


def first_dtype(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.dtype | None:
    """The dtype of the first floating tensor among a call's arguments; None when there is none."""
    values = (*args, *kwargs.values())
    return next((v.dtype for v in values if isinstance(v, torch.Tensor) and is_compute(v)), None)


def all_finite(value: Any) -> bool:
    """Whether every floating tensor in a result, or in its tuple, holds finite numbers only."""
    if isinstance(value, torch.Tensor):
        return not is_compute(value) or bool(torch.isfinite(value).all())
    return all(all_finite(item) for item in value) if isinstance(value, (tuple, list)) else True


def cast_tensors(value: Any, dtype: torch.dtype) -> Any:
    """A result with its floating tensors in `dtype`; tuples and lists are made anew."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if is_compute(value) else value
    if type(value) in (tuple, list):
        return type(value)(cast_tensors(item, dtype) for item in value)
    return value


def hand_over(result: Any, dtype: torch.dtype) -> Any:
    """An encode's result in the caller's dtype.

    Latents are cast. A distribution keeps its parameters as computed and casts what is drawn from it: drawing in the
    narrow dtype would round mean and deviation first. The distribution belongs to this one call, so that nothing has
    to be put back.
    """
    if isinstance(result, torch.Tensor):
        return result.to(dtype) if is_compute(result) else result
    if type(result) in (tuple, list):
        return type(result)(hand_over(item, dtype) for item in result)
    if isinstance(result, dict):  # diffusers' outputs are ordered dicts whose fields are attributes too
        for key, item in list(result.items()):
            result[key] = hand_over(item, dtype)
        return result
    for name in ("sample", "mode"):
        if callable(draw := getattr(result, name, None)):
            setattr(result, name, functools.partial(_draw, draw, dtype))
    return result


def _draw(draw: Callable[..., torch.Tensor], dtype: torch.dtype, *args: Any, **kwargs: Any) -> torch.Tensor:
    return draw(*args, **kwargs).to(dtype)

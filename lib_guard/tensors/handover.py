"""What is handed over at a boundary: arguments on the way in, results on the way out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .dtypes import is_compute

#: The floating dtypes that a call was given, by the argument's name (its position where it has none).
Given = tuple[tuple[str, torch.dtype], ...]


def first_dtype(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.dtype | None:
    """The dtype of the first floating tensor among a call's arguments; None when there is none."""
    values = (*args, *kwargs.values())
    return next((v.dtype for v in values if isinstance(v, torch.Tensor) and is_compute(v)), None)


def dtypes_given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given:
    """Every floating dtype among a call's arguments, also inside of lists and dicts, each once an argument."""
    named = [(str(place), value) for place, value in enumerate(args, 1)] + list(kwargs.items())
    return tuple(dict.fromkeys((name, tensor.dtype) for name, value in named for tensor in tensors_in(value)))


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The floating tensors of a call's argument or result: in tuples, lists, dicts (diffusers' outputs are such), and
    in a latent distribution, which holds them as its `parameters`."""
    if isinstance(value, torch.Tensor):
        if is_compute(value):
            yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))
    elif isinstance(parameters := getattr(value, "parameters", None), torch.Tensor):
        yield from tensors_in(parameters)


def all_finite(value: Any) -> bool:
    """Whether every floating tensor in a call's argument or result holds finite numbers only.

    One reduction a tensor, which copies nothing: the smallest and the largest number are both NaN where one is.
    """
    return all(_is_finite(tensor) for tensor in tensors_in(value))


def _is_finite(tensor: torch.Tensor) -> bool:
    return not tensor.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())


def hand_over(result: Any, dtype: torch.dtype) -> Any:
    """A call's result with its floating tensors in `dtype`; tuples and lists are made anew.

    A latent distribution keeps its parameters as computed and casts what is drawn from it: drawing in the narrow dtype
    would round mean and deviation first. It belongs to this one call, so that nothing has to be put back.
    """
    if isinstance(result, torch.Tensor):
        return _cast(result, dtype)
    if type(result) in (tuple, list):
        return type(result)(hand_over(item, dtype) for item in result)
    if isinstance(result, dict):  # diffusers' and transformers' outputs are ordered dicts whose fields are attributes
        for key, item in list(result.items()):
            result[key] = hand_over(item, dtype)
        return result
    for name in ("sample", "mode"):
        if callable(draw := getattr(result, name, None)):
            setattr(result, name, functools.partial(_draw, draw, dtype))
    return result


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor in `dtype`, with what was hung on it (AUTOMATIC1111's `z.pooled`, sd_hijack_clip.py:283)."""
    if not is_compute(tensor) or tensor.dtype == dtype:
        return tensor
    cast = tensor.to(dtype)
    for name, value in vars(tensor).items():
        setattr(cast, name, _cast(value, dtype) if isinstance(value, torch.Tensor) else value)
    return cast


def _draw(draw: Callable[..., torch.Tensor], dtype: torch.dtype, *args: Any, **kwargs: Any) -> torch.Tensor:
    return draw(*args, **kwargs).to(dtype)

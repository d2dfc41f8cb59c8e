"""The tensors of a checkpoint's files, found by name, or by content where a host calls them otherwise.

Nothing but the safetensors format is read. Hosts rename tensors when they load a file, and some they cut or turn:
SDXL's second text encoder has its three projections in one tensor in a single file and apart in diffusers
(diffusers loaders/single_file_utils.py), and 1x1 convolutions become linear layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

#: Whether a tensor is the one that a name is to be given.
Accept = Callable[[str, torch.Tensor], bool]


def find_tensors(
    files: Sequence[Path], prefix: str, wanted: Mapping[str, tuple[int, ...]], accept: Accept
) -> Iterator[tuple[str, torch.Tensor]]:
    """Look for tensors; yields names of `wanted` with a tensor on the CPU that `accept` took, in the file's dtype.

    prefix: what comes before a name in the files. wanted: shapes by name. A file that is gone, or is none, is passed
    over; so is a tensor that cannot be read.
    """
    with ExitStack() as opened:
        sources = [source for source in (_open(file, opened) for file in files) if source is not None]
        missing = dict(wanted)
        for name, tensor in _by_name(sources, prefix, wanted):
            if name in missing and accept(name, tensor):
                del missing[name]
                yield name, tensor
        yield from _by_content(sources, missing, accept)


def tensors_named(
    files: Sequence[Path], prefix: str, wanted: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that have the names and shapes that are wanted, whatever they hold. As `find_tensors` otherwise."""
    with ExitStack() as opened:
        sources = [source for source in (_open(file, opened) for file in files) if source is not None]
        yield from _by_name(sources, prefix, wanted)


def _open(file: Path, opened: ExitStack) -> Any:
    if file.suffix.lower() != ".safetensors" or not file.is_file():
        return None
    try:
        return opened.enter_context(safe_open(str(file), framework="pt", device="cpu"))
    except (SafetensorError, OSError):
        return None


def _by_name(
    sources: Sequence[Any], prefix: str, wanted: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, torch.Tensor]]:
    for source in sources:
        known = set(source.keys())
        for name, shape in wanted.items():
            for called in dict.fromkeys((prefix + name, name)):
                if called in known:
                    yield from ((name, tensor) for tensor in _variants(_read(source, called), shape))


def _by_content(
    sources: Sequence[Any], missing: dict[str, tuple[int, ...]], accept: Accept
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a size that is still looked for is offered to every name of that size."""
    for source in sources:
        for called in list(source.keys()):
            if not missing:
                return
            numbers = _numbers(source, called)
            fitting = [n for n, shape in missing.items() if numbers in (_count(shape), 3 * _count(shape))]
            tensor = _read(source, called) if fitting else None
            for name in fitting:
                found = next((one for one in _variants(tensor, missing[name]) if accept(name, one)), None)
                if found is not None:
                    del missing[name]
                    yield name, found


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _numbers(source: Any, called: str) -> int:
    return _count(tuple(source.get_slice(called).get_shape()))


def _read(source: Any, called: str) -> torch.Tensor | None:
    try:
        tensor: torch.Tensor = source.get_tensor(called)
    except (SafetensorError, AttributeError, TypeError, RuntimeError):  # a dtype that this torch has not got
        return None
    return tensor


def _variants(tensor: torch.Tensor | None, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
    """The tensor in every way in which a host may have brought it to that shape."""
    if tensor is None:
        return
    if tuple(tensor.shape) == shape:
        yield tensor
    elif tensor.numel() == _count(shape) and _without_ones(tensor.shape) == _without_ones(shape):
        yield tensor.reshape(shape)
    if tensor.dim() == 2 and tuple(tensor.shape[::-1]) == shape:
        yield tensor.t().contiguous()
    if tensor.dim() and tensor.numel() == 3 * _count(shape) and tensor.shape[0] % 3 == 0:
        yield from (third for third in tensor.chunk(3) if tuple(third.shape) == shape)


def _without_ones(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]

"""Put weights back to what they were, in place, and only with tensors that prove themselves.

A tensor is written when its fingerprint, in the weight's dtype, is the baseline's; whatever else a host's backup or a
file may hold is left alone. The weight stays the object that it is, on its device and in its dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from ..files.tensors import find_tensors, tensors_named
from .baseline import Baseline
from .fingerprint import Fingerprint, fingerprint
from .weights import Slot, slots_of, weights_of


def restore_from_copies(
    component: nn.Module, baseline: Baseline, strays: Iterable[str], copies: Mapping[str, torch.Tensor]
) -> list[str]:
    """Write the copies of those strays that prove themselves; returns the names that were written."""
    slots = slots_of(component)
    written = []
    for name in strays:
        copy = copies.get(name)
        if name in slots and copy is not None and _proves(copy, baseline.sums[name]):
            _write(slots[name], copy)
            written.append(name)
    return written


def restore_from_files(component: nn.Module, baseline: Baseline, strays: Iterable[str]) -> list[str]:
    """Write the tensors of the checkpoint's files to those strays for which they prove themselves; returns the names
    that were written. A tensor in another dtype is rounded as the host rounded it when it loaded it."""
    slots = slots_of(component)
    wanted = {name: baseline.sums[name] for name in strays if name in slots and not baseline.sums[name].parts}
    shapes = {name: one.shape for name, one in wanted.items()}

    def proves(name: str, tensor: torch.Tensor) -> bool:
        return tensor.is_floating_point() and _proves(tensor.to(wanted[name].dtype), wanted[name])

    written = []
    for name, tensor in find_tensors([path for path, _, _ in baseline.files], baseline.prefix, shapes, proves):
        _write(slots[name], tensor.to(wanted[name].dtype))
        written.append(name)
    return written


def fingerprints_in_files(
    component: nn.Module, files: Sequence[Path], prefix: str, names: Iterable[str]
) -> dict[str, Fingerprint]:
    """What weights would be if they were loaded from the files now, by the names that the files have them under; those
    that are not there under their names are left out."""
    weights = {name: tensor for name, tensor in weights_of(component).items() if name in set(names)}
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    found: dict[str, Fingerprint] = {}
    for name, tensor in tensors_named(files, prefix, shapes):
        found.setdefault(name, fingerprint(tensor.to(weights[name].dtype)))  # the first is the one as it lies there
    return found


def changed_files(baseline: Baseline) -> list[Path]:
    """The files that are not what they were when the weights came from them, or are gone."""
    return [path for path, size, changed in baseline.files if stamp(path) != (size, changed)]


def stamp(path: Path) -> tuple[int, int]:
    """A file's size and time of change; zeros when it is not there."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _proves(tensor: torch.Tensor, wanted: Fingerprint) -> bool:
    return wanted.readable and not wanted.differs(fingerprint(tensor))


def _write(slot: Slot, tensor: torch.Tensor) -> None:
    """Weights that were made in inference mode can only be written in it, and others must not become such."""
    held = slot.tensor
    if held is None:
        _hang_up(slot, tensor)
        return
    with torch.inference_mode(held.is_inference()), torch.no_grad():
        held.copy_(tensor)


def _hang_up(slot: Slot, tensor: torch.Tensor) -> None:
    """A host that failed half way may have left a place empty (SD.Next lora_apply.py:237)."""
    beside = next((one for one in slot.module.parameters() if not one.is_meta), None)
    placed = tensor.to(beside.device) if beside is not None else tensor.clone()
    if slot.parameter:
        slot.module._parameters[slot.name] = nn.Parameter(placed, requires_grad=False)
    else:
        slot.module._buffers[slot.name] = placed

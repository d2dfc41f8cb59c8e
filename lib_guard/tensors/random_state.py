"""The state of the random generators around a call that may be repeated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .handover import tensors_in


def remember_random_state(given: Any) -> Callable[[], None]:
    """A call that puts the random state back to what it is now: the CPU's, and that of the device of the first floating
    tensor in `given`."""
    first = next(tensors_in(given), None)
    device: Any = getattr(torch, first.device.type, None) if first is not None else None
    reads = hasattr(device, "get_rng_state") and first is not None and first.device.type != "cpu"
    cpu, own = torch.get_rng_state(), device.get_rng_state() if reads else None

    def put_back() -> None:
        torch.set_rng_state(cpu)
        if own is not None:
            device.set_rng_state(own)

    return put_back

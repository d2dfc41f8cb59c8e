"""Where a latent ceased to be finite: in which step, and by which LoRA file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..files.header import UnreadableFile
from ..files.scan import first_not_finite
from ..findings import Primitive
from ..hosts.base import Host
from ..tensors.handover import tensors_in
from ..wording import on_one_line

#: Calls kept of one generation; a flag is one number, so this is bounded by sense, not by memory.
_CALLS = 5000


@dataclass(frozen=True)
class _Sampled:
    """One call of the UNet. finite: a tensor of one truth value on its device, so that noting it waits for nothing."""

    step: int
    steps: int
    finite: torch.Tensor


class Origin:
    """Notes of every call of the UNet whether it gave finite numbers, and reads the notes only when they are asked."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._calls: list[_Sampled] = []

    def note(self, output: Any) -> None:
        """Take note of one call's result, without waiting for the device."""
        first = next(tensors_in(output), None)
        if first is not None and len(self._calls) < _CALLS:
            self._calls.append(_Sampled(*self._host.step(), torch.isfinite(first).all()))

    def began(self) -> tuple[int, int] | None:
        """The step and the number of steps of the first call that gave something else; None when none did."""
        if not self._calls:
            return None
        finite = torch.stack([call.finite.to("cpu") for call in self._calls]) if self._mixed else self._stacked
        if bool(finite.all()):
            return None
        bad = self._calls[int((~finite).nonzero()[0])]
        return bad.step, bad.steps

    @property
    def _mixed(self) -> bool:
        """Whether two passes ran on two devices (a refiner on another card)."""
        return len({call.finite.device for call in self._calls}) > 1

    @property
    def _stacked(self) -> torch.Tensor:
        return torch.stack([call.finite for call in self._calls])

    def tell(self) -> tuple[str, dict[str, Primitive]]:
        """Where it began, in a clause and as evidence. Reads the LoRA files that are in use."""
        began = self.began()
        loras = [told for told in (_broken(name, path) for name, path in self._host.loras()) if told]
        step = f"it began in step {began[0]} of {began[1]}" if began else "no step of sampling made it so"
        evidence: dict[str, Primitive] = {
            "step": began[0] if began else None,
            "steps": began[1] if began else None,
            "loras": "; ".join(loras) or None,
        }
        return "; ".join([step, *loras]), evidence


def _broken(name: str, path: Path) -> str:
    """`LoRA "x": tensor ... holds 3 NaN`; `` when the file's numbers are finite, or are no readable safetensors."""
    try:
        found = first_not_finite(path)
    except UnreadableFile:
        return ""
    return f'LoRA "{on_one_line(name, 60)}": {found.describe()}' if found else ""

"""The extension Regional Prompter on AUTOMATIC1111: what it changes for a generation, and leaves after a failure.

Of be623452 this knows:
  scripts/latent.py:33 setuploras       sets `opts.lora_functional` and `torch.nn.Linear.forward` for a generation;
                                        what was there goes to its globals orig_lora_functional, orig_Linear_forward
  scripts/latent.py:745 unloadlorafowards, rp.py:710 unloader
                                        put them back in `postprocess`, or in the next request without the extension;
                                        after two failures in a row what was kept is what the first one left
  scripts/rp.py:735                     sets `opts.batch_cond_uncond` to False while it is active
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch

from ..findings import Finding, Repair
from .ldm_conditioning import empty_caches

#: What it sets for the length of a generation, and the values that it sets.
_BORROWED_OPTIONS: dict[str, bool] = {"lora_functional": True, "batch_cond_uncond": False}

#: Stands for an option that is not in the settings, because the user never changed it.
_UNSET = object()


def in_force() -> dict[str, Any] | None:
    """The globals of Regional Prompter's latent mode while its patch of `Linear.forward` is in place."""
    found = getattr(torch.nn.Linear.forward, "__globals__", {})
    return found if {"lactive", "orig_lora_functional"} <= found.keys() else None


def is_generating() -> bool:
    """Whether any thread works on a request."""
    return any(_generates(frame) for frame in sys._current_frames().values())


def _generates(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "process_images_inner":
            return True
        frame = frame.f_back
    return False


@dataclass(frozen=True)
class Borrowed:
    """What Regional Prompter changes for the length of a generation, as it is without it.

    stored: the options as the settings hold them. effective: their values, which are defaults where nothing is stored.
    """

    stored: Mapping[str, object]
    effective: Mapping[str, object]
    linear_forward: Callable[..., Any]

    @classmethod
    def now(cls) -> Borrowed:
        """As it is now."""
        from modules import shared

        stored = {key: shared.opts.data.get(key, _UNSET) for key in _BORROWED_OPTIONS}
        return cls(stored, {key: _effective(key) for key in _BORROWED_OPTIONS}, torch.nn.Linear.forward)

    def changed(self) -> list[str]:
        """The options that are now what the extension sets, and were something else."""
        return [key for key, set_to in _BORROWED_OPTIONS.items() if _effective(key) == set_to != self.effective[key]]

    def finding(self) -> Finding:
        """What is left of it."""
        left = ", ".join(["torch.nn.Linear.forward", *(f"{key} = {_effective(key)}" for key in self.changed())])
        return Finding(
            "LG106",
            "precision",
            "settings",
            "",
            f"Regional Prompter left {left} behind when a generation failed",
            {"left": left, "cause_key": "Regional Prompter"},
            cause="Regional Prompter (Latent) puts its changes back only after a generation that came through; after"
            " two failures it no longer knows what was there before.",
            permanent_fix="Be rid of the failure (the lines above, or LibGuard left on); without LibGuard restart the"
            " WebUI after it, before settings are saved.",
        )

    def put_back(self, extension: dict[str, Any]) -> Repair:
        """Put it back, in memory only: nothing is written to the settings file.

        The extension's own memory of the option is corrected too, or its next request would bring the value back.
        """
        from modules import shared

        for key in self.changed():
            if self.stored[key] is _UNSET:
                shared.opts.data.pop(key, None)
            else:
                shared.opts.data[key] = self.stored[key]
        torch.nn.Linear.forward = self.linear_forward  # type: ignore[method-assign]
        empty_caches()
        extension["orig_lora_functional"] = bool(self.effective["lora_functional"])
        proven = not self.changed() and torch.nn.Linear.forward is self.linear_forward
        return Repair("put back as before that generation", "compared" if proven else "", 0.0)


def _effective(key: str) -> object:
    """An option's value; None where no extension declares it (`lora_functional` comes with the Lora extension)."""
    from modules import shared

    return getattr(shared.opts, key, None)

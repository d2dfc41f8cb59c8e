"""What AUTOMATIC1111 and Forge, its fork, have in common: the sampler and the Lora extension.

Of AUTOMATIC1111 1.10.1 this relies on, and Forge (dfdcbab6) has kept:
  sampler.model_wrap_cfg.step, .steps, .total_steps
                                  what is being sampled, sd_samplers_cfg_denoiser.py:47-53; `shared.state` tells
                                  the step before (sd_samplers_common.py:262)
  networks.loaded_networks        the LoRAs that are in use; each has a name and a `network_on_disk.filename`
                                  (extensions-builtin/Lora/network.py:16, sd_forge_lora/network.py)
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .webui import WebUiHost


class LdmHost(WebUiHost):
    """A host whose request holds its sampler."""

    def __init__(self) -> None:
        self._request: weakref.ref[Any] | None = None

    def remember(self, request: Any) -> None:
        """See `Host`."""
        self._request = weakref.ref(request)

    def step(self) -> tuple[int, int]:
        """See `Host`. Samplers of the second order call the UNet twice a step."""
        request = self._request() if self._request is not None else None
        denoiser = getattr(getattr(request, "sampler", None), "model_wrap_cfg", None)
        done, calls, steps = (int(getattr(denoiser, name, 0) or 0) for name in ("step", "total_steps", "steps"))
        return (min(done * steps // calls + 1, steps), steps) if steps and calls else (0, 0)

    def loras(self) -> Sequence[tuple[str, Path]]:
        """See `Host`."""
        loaded = getattr(sys.modules.get("networks"), "loaded_networks", ())
        return [(str(one.name), Path(one.network_on_disk.filename)) for one in loaded]

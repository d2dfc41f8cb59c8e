"""What all WebUIs have in common; an adapter overrides where its host differs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any

from ..findings import Finding, Repair
from .base import Arrival, Boundary, Shield
from .encoder_handling import PipelineEncoders, UnitEncoders
from .lora_handling import LoraHandling
from .seams import Seam

#: Seams that LibGuard stands on in every WebUI, whatever guards are on.
COMMON_SEAMS = (
    Seam("modules.shared", "opts", "modules/shared.py", "the settings; `opts.data` holds them by key"),
    Seam("modules.shared", "state", "modules/shared.py", "the sampling step", guards=("finite",)),
    Seam("modules.scripts", "AlwaysVisible", "modules/scripts.py", "marks a script that is part of every generation"),
    Seam("modules.script_callbacks", "on_ui_settings", "modules/script_callbacks.py", "where options are added"),
    Seam("modules.processing", "process_images", "modules/processing.py", "a generation; its local `p` is the request"),
)


class WebUiHost:
    """A WebUI of the family that began with AUTOMATIC1111's."""

    #: Without a version.
    name = "a WebUI"
    title = "a WebUI"
    seams: tuple[Seam, ...] = COMMON_SEAMS

    @classmethod
    def is_here(cls) -> bool:
        """Whether this process is that WebUI. Loads no model."""
        return False

    @classmethod
    def is_folder(cls, folder: Path) -> bool:
        """Whether a folder holds that WebUI. Executes nothing of it."""
        return False

    def connect(self, begin: Callable[[Any], None], end: Callable[[Any], None]) -> None:
        """See `Host`. Most hosts run the Scripts in every generation."""

    def boundaries(self) -> Sequence[Boundary]:
        """See `Host`."""
        return ()

    def arrivals(self) -> Sequence[Arrival]:
        """See `Host`."""
        return ()

    def shields(self) -> Sequence[Shield]:
        """See `Host`."""
        return ()

    def options(self) -> Mapping[str, object]:
        """See `Host`."""
        from modules import shared

        options: Mapping[str, object] = shared.opts.data
        return options

    def step(self) -> tuple[int, int]:
        """See `Host`. Every WebUI counts the finished ones in `shared.state`."""
        from modules import shared

        state = shared.state
        steps = int(getattr(state, "sampling_steps", 0) or 0)
        return (min(int(getattr(state, "sampling_step", 0) or 0) + 1, steps), steps) if steps else (0, 0)

    def loras(self) -> Sequence[tuple[str, Path]]:
        """See `Host`."""
        return ()

    def lora_handling(self) -> LoraHandling | None:
        """See `Host`."""
        return None

    def encoder_handling(self) -> UnitEncoders | PipelineEncoders | None:
        """See `Host`."""
        return None

    def remember(self, request: Any) -> None:
        """See `Host`."""

    def left_behind(self, put_back: bool) -> Sequence[tuple[Finding, Repair | None]]:
        """See `Host`."""
        return ()

    def tab(self, request: Any) -> str:
        """See `Host`."""
        return "img2img" if hasattr(request, "init_images") else "txt2img"

    def on_end(self, request: Any, call: Callable[[], None]) -> None:
        """See `Host`. The request lives for one generation, so its `close` needs no way back."""
        close = request.close

        @wraps(close)
        def close_and_call() -> None:
            try:
                close()
            finally:
                call()

        request.close = close_and_call

    def is_running(self, request: Any) -> bool:
        """See `Host`. What works on a request holds it as its local `p`, as every WebUI names it."""
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if frame.f_code.co_name.startswith("process_images") and frame.f_locals.get("p") is request:
                return True
            frame = frame.f_back
        return False

    def write_infotext(self, request: Any, values: Mapping[str, str]) -> None:
        """See `Host`."""
        request.extra_generation_params.update(values)

    def comment(self, request: Any, text: str) -> None:
        """See `Host`. A WebUI that has no such thing shows nothing."""
        comment = getattr(request, "comment", None)
        if callable(comment):
            comment(text)

    def explain(self, finding: Finding) -> Finding:
        """See `Host`."""
        return finding

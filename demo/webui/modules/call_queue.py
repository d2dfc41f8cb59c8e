"""One generation at a time, for page and API alike."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any

from modules import processing, scripts, shared
from modules.processing import Processed, StableDiffusionProcessing

queue_lock = threading.Lock()


def generate(
    p: StableDiffusionProcessing,
    is_img2img: bool,
    script_args: list[Any],
    per_script_args: dict[str, Any] | None = None,
) -> Processed:
    """Run `p` with the scripts of its tab; errors are passed on. A1111 calls `p.close()` whatever happens."""
    # SD.Next promises no close: there `on_after_process` is the only call that always comes.
    end: AbstractContextManager[Any] = closing(p) if shared.order == "a1111" else nullcontext()
    with queue_lock, end:
        shared.state.begin(job="scripts_img2img" if is_img2img else "scripts_txt2img")
        try:
            p.per_script_args = per_script_args or {}
            p.scripts = scripts.runner(is_img2img)
            p.script_args = script_args
            return processing.process_images(p)
        finally:
            shared.state.end()

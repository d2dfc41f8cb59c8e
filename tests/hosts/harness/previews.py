"""Live previews, as an open page asks for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from harness.keeper import Host


@contextmanager
def previews(host: Host) -> Iterator[list[str]]:
    """Ask for a live preview again and again; yields the different ones that come. Some hosts decode them in the asking
    thread."""
    seen: list[str] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            image = (host.get("/sdapi/v1/progress?skip_current_image=false").json or {}).get("current_image")
            seen.extend([image] if image and image not in seen else [])
            time.sleep(0.02)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()

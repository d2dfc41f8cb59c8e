"""A Chromium for the browser test and for the pictures of the README."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")


def find() -> str:
    """The browser's path: what `LIB_GUARD_BROWSER` names (dev.py sets it), else one on the PATH, else ``."""
    return os.environ.get("LIB_GUARD_BROWSER") or next(filter(None, map(shutil.which, NAMES)), "")


@contextmanager
def page(width: int = 1280, height: int = 1000) -> Iterator[Any]:
    """An empty page of a headless browser. Raises FileNotFoundError where there is none."""
    from playwright.sync_api import sync_playwright

    if not (path := find()):
        raise FileNotFoundError("no Chromium: install one, or name it in LIB_GUARD_BROWSER")
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    # A browser refuses its sandbox to root, as which containers and CI run.
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*quiet, *sandbox])
        try:
            yield browser.new_page(viewport={"width": width, "height": height})
        finally:
            browser.close()

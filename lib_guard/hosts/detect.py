"""Which WebUI this is, told by what it has and not by what it calls itself."""

from __future__ import annotations

import importlib

from .base import Host
from .diffusers import DiffusersHost


def find_host() -> Host | None:
    """The adapter of the WebUI that this process is; None when there is none for it."""
    modules = importlib.import_module("modules")
    if getattr(modules, "EMBEDDED_HOST", False):
        return DiffusersHost()
    return None

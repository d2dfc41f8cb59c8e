"""Which WebUI this is, told by what it has and not by what it calls itself."""

from __future__ import annotations

from importlib.util import find_spec

from .base import Host
from .diffusers import DiffusersHost


def find_host() -> Host | None:
    """The adapter of the WebUI that this process is; None when there is none for it."""
    if find_spec("modules.embedded_host") is not None:
        return DiffusersHost()
    return None

"""Which WebUI this is, told by what it has and not by what it calls itself."""

from __future__ import annotations

from pathlib import Path

from .a1111 import A1111Host
from .diffusers import DiffusersHost
from .forge import ForgeHost
from .sdnext import SdNextHost
from .webui import WebUiHost

#: In the order in which they are asked: the more special ones first.
ADAPTERS: tuple[type[WebUiHost], ...] = (DiffusersHost, SdNextHost, ForgeHost, A1111Host)


def find_host() -> WebUiHost | None:
    """The adapter of the WebUI that this process is; None when there is none for it."""
    return next((adapter() for adapter in ADAPTERS if adapter.is_here()), None)


def find_adapter(folder: Path) -> type[WebUiHost] | None:
    """The adapter of the WebUI in a folder; None when there is none for it. Nothing of the folder is executed."""
    return next((adapter for adapter in ADAPTERS if adapter.is_folder(folder)), None)

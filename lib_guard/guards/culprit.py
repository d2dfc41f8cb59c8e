"""Who brought it: read from the frames of the call in which an operation failed.

The frames tell what the operands cannot: a layer that casts its weight hands a copy to the operation, and an extension
that patches a layer's class is in none of the model's attributes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch

_TORCH = str(Path(torch.__file__).parent)
_LIBGUARD = str(Path(__file__).resolve().parent.parent)

#: Where a path begins to say something to a person; what comes before is the user's own folder and is never shown.
_BEHIND = ("site-packages", "dist-packages")
_FROM = ("extensions", "extensions-builtin", "custom_nodes", "repositories", "modules", "backend", "modules_forge")


def module_in(owner: torch.nn.Module) -> str:
    """The path of the innermost module of `owner` whose method is being executed; `` when there is none."""
    paths = {id(module): path for path, module in owner.named_modules()}
    found = (paths.get(id(frame.f_locals.get("self"))) for frame in _frames())
    return next((str(path) for path in found if path), "")


def place_in() -> str:
    """The innermost line outside of torch and LibGuard: `extensions/some-name/scripts/x.py:12`; `` when none is."""
    return next((_short(frame) for frame in _frames() if _is_telling(frame)), "")


def caller_of(owner: torch.nn.Module) -> str:
    """The line that called `owner`, outside of torch and LibGuard; `` when `owner` is not being called."""
    frames = _frames()
    for frame in frames:
        if frame.f_code.co_name == "_call_impl" and frame.f_locals.get("self") is owner:
            return next((_short(outer) for outer in frames if _is_telling(outer)), "")
    return ""


def shorten(file: str) -> str:
    """A file's path from where it says something: `diffusers/models/unet.py`, `extensions/some-name/scripts/x.py`;
    else its name alone."""
    parts = re.split(r"[\\/]+", file)
    for marker in _BEHIND:
        if marker in parts:
            return "/".join(parts[parts.index(marker) + 1 :])
    starts = [parts.index(marker) for marker in _FROM if marker in parts[:-1]]
    return "/".join(parts[min(starts) :]) if starts else parts[-1]


def extension_of(place: str) -> str:
    """The name of the extension that a place is in; `` for the host's own and its built-in ones."""
    found = re.match(r"(?:extensions|custom_nodes)/([^/]+)/", place)
    return found.group(1) if found else ""


def _frames() -> Iterator[FrameType]:
    """From the innermost outwards."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_telling(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return not file.startswith((_TORCH, _LIBGUARD, "<"))


def _short(frame: FrameType) -> str:
    return f"{shorten(frame.f_code.co_filename)}:{frame.f_lineno}"

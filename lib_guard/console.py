"""What LibGuard says on the console: one handler of its own, coloured on a terminal, plain in a file."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TextIO

from .findings import Finding, Repair, sentence

LOGGER = logging.getLogger("lib_guard")

#: The host's setting that holds the level, and its choices: the name, and the level it stands for.
OPTION = "lib_guard_console"
LEVELS = {"normal": logging.INFO, "warnings only": logging.WARNING, "silent": logging.CRITICAL + 1}

_COLOURS = {logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m", logging.INFO: "\x1b[36m"}
_RESET = "\x1b[0m"


class _Formatter(logging.Formatter):
    """`[LibGuard] text`, the name coloured when the stream is a terminal that shows colours."""

    def __init__(self, coloured: bool) -> None:
        super().__init__()
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        colour = _COLOURS.get(record.levelno, "") if self._coloured else ""
        name = f"{colour}[LibGuard]{_RESET}" if colour else "[LibGuard]"
        return f"{name} {without_home(record.getMessage())}"


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to whatever `sys.stderr` is at the moment, since hosts and tests exchange it."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(_Formatter(coloured=_shows_colours()))

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def set_up(level: str) -> None:
    """Attach the one handler (again, after a reload of the UI, in the place of the old one) and set the level.

    The host's own loggers are not touched; nothing is passed up to them, or each line would be printed twice.
    """
    for handler in list(LOGGER.handlers):
        LOGGER.removeHandler(handler)
    LOGGER.addHandler(_Handler())
    LOGGER.propagate = False
    set_level(level)


def set_level(level: object) -> None:
    """Set how much is said, by a key of `LEVELS`; anything else means `normal`."""
    LOGGER.setLevel(LEVELS.get(str(level), logging.INFO))


def say(finding: Finding, repair: Repair | None) -> None:
    """Print a finding's one line."""
    LOGGER.warning("%s", sentence(finding, repair))


def without_home(text: str) -> str:
    """The text with the user's home folder written as `~`: it names the user, and logs are pasted into reports."""
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


def _shows_colours() -> bool:
    """Whether the terminal shows colours, by the conventions NO_COLOR and isatty."""
    return not os.environ.get("NO_COLOR") and bool(getattr(sys.stderr, "isatty", lambda: False)())

"""What LibGuard says on the console: one handler of its own, coloured on a terminal, plain in a file."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from .findings import Finding, Repair, sentence

LOGGER = logging.getLogger("lib_guard")

if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:  # Python 3.10 cannot subscript it
    _StreamHandler = logging.StreamHandler

#: The host's setting that holds the level, and its choices: the name, and the level it stands for.
OPTION = "lib_guard_console"
LEVELS = {"normal": logging.INFO, "warnings only": logging.WARNING, "silent": logging.CRITICAL + 1}

_COLOURS = {logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m", logging.INFO: "\x1b[36m"}
_RESET = "\x1b[0m"


_NAME = "[LibGuard]"


class _Named(logging.Filter):
    """Makes a record's text `[LibGuard] text`, without the home folder, for whatever handler prints it.

    Here and not in the formatter, because a host may exchange the handlers: SD.Next gives its own to every logger once
    it is up (webui.py:432), so that LibGuard's lines are in its log file too.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = f"{_NAME} {without_home(record.getMessage())}", ()
        return True


class _Formatter(logging.Formatter):
    """The text as it is, LibGuard's name coloured when the stream is a terminal that shows colours."""

    def __init__(self, coloured: bool) -> None:
        super().__init__()
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        colour = _COLOURS.get(record.levelno, "") if self._coloured else ""
        text = record.getMessage()
        return text.replace(_NAME, f"{colour}{_NAME}{_RESET}", 1) if colour else text


class _Handler(_StreamHandler):
    """Writes to whatever `sys.stderr` is at the moment, since hosts and tests exchange it."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(_Formatter(coloured=_shows_colours()))

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def set_up(level: str) -> None:
    """Attach the one handler (again, after a reload of the UI, in the place of the old one) and set the level.

    The host's own loggers are not touched; nothing is passed up to them, or each line would be printed twice. The list
    of handlers is exchanged and never changed: it may be the very list of the host's logger (SD.Next, see `_Named`).
    """
    LOGGER.handlers = [_Handler()]
    LOGGER.filters = [_Named()]
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

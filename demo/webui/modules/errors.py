"""How the host reports errors of extensions: on stderr, with three stars, and goes on."""

from __future__ import annotations

import sys
import textwrap
import traceback

#: The innermost frames are printed; the web framework's twenty above them say nothing.
FRAMES = 8


def report(message: str, *, exc_info: bool = False) -> None:
    """Print `message`, and with `exc_info` the traceback of the exception being handled, indented."""
    print("\n".join(f"*** {line}" for line in message.splitlines()), file=sys.stderr)
    if exc_info:
        print(_indented(traceback.format_exc(limit=-FRAMES, chain=False)), file=sys.stderr)


def display(e: BaseException, task: str) -> None:
    """SD.Next's name for `report`: print exception `e` that happened during `task`."""
    print(f"*** {task}: {type(e).__name__}: {e}", file=sys.stderr)
    print(_indented("".join(traceback.format_exception(e, limit=-FRAMES, chain=False))), file=sys.stderr)


def _indented(text: str) -> str:
    return textwrap.indent(text, "    ") + "---"

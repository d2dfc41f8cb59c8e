"""LibGuard from outside of a WebUI: `python -m lib_guard doctor FOLDER`, `inspect FILE` and `explain TEXT`, in
LibGuard's folder.

Any Python from 3.10 on will do that has torch, which the WebUI's own has: the adapters are written with its types, and
a file's numbers are looked at with it. `explain` needs no torch.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

#: Exit statuses. PROBLEM: something that LibGuard needs is missing. UNKNOWN: the question itself cannot be answered.
GOOD, PROBLEM, UNKNOWN = 0, 1, 2


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    if sys.version_info < (3, 10):  # noqa: UP036 - it is this very check that tells an older Python's user
        print("LibGuard needs Python 3.10 or newer; this is", sys.version.split()[0], file=sys.stderr)
        return UNKNOWN
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a console may lack the letters of a file's name
    options = _parser().parse_args(arguments)
    commands = {"doctor": _doctor, "inspect": _inspect, "explain": _explain}
    return commands[options.command](options)


def _doctor(options: argparse.Namespace) -> int:
    try:
        # Here and not above: an older Python could not even read it.
        from . import doctor
    except ModuleNotFoundError as error:
        print(_lacks(str(error.name), options.folder), file=sys.stderr)
        return UNKNOWN
    try:
        report = doctor.examine(options.folder)
    except doctor.NoWebUiError as error:
        print(error, file=sys.stderr)
        return UNKNOWN
    print(doctor.as_json(report) if options.json else doctor.as_table(report))
    return GOOD if report.good else PROBLEM


def _inspect(options: argparse.Namespace) -> int:
    from . import inspection

    try:
        found = inspection.examine(options.file)
    except ModuleNotFoundError as error:
        print(f"{sys.executable} lacks {error.name}; the WebUI's own Python has it", file=sys.stderr)
        return PROBLEM
    except ValueError as error:  # UnreadableFile
        print(error, file=sys.stderr)
        return PROBLEM
    print(inspection.as_json(found) if options.json else inspection.as_text(found))
    return GOOD


def _explain(options: argparse.Namespace) -> int:
    from .explain import explain, output

    found = explain(output.end_of(_input()) if options.text in ([], ["-"]) else " ".join(options.text))
    if options.json:
        print(output.as_json(found))
    elif found:
        print(output.as_text(found))
    else:
        print(output.UNKNOWN, file=sys.stderr)
    return GOOD if found else PROBLEM


def _input() -> TextIO:
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # a log may be in any encoding, or hold anything
    if sys.stdin.isatty():
        print("Paste the error, then end the input (Ctrl-D, on Windows Ctrl-Z and Enter).", file=sys.stderr)
    return sys.stdin


def _lacks(package: str, folder: Path) -> str:
    places = [place / name for place in (folder, folder.resolve().parent) for name in ("venv", ".venv")]
    inside = ("bin/python", "Scripts/python.exe")
    python = next((place / name for place in places for name in inside if (place / name).is_file()), None)
    own = f"{python} -m lib_guard doctor {folder}" if python else "the WebUI's own Python has it"
    return f"The doctor needs {package}, which {sys.executable} does not have; try: {own}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lib_guard")
    commands = parser.add_subparsers(title="commands", dest="command", required=True)
    doctor = commands.add_parser(
        "doctor",
        help="what LibGuard would find in a WebUI, without starting it",
        description="Looks at a WebUI's files and executes none of them."
        " Exit status: 0 all is there, 1 something is missing, 2 the folder holds no WebUI that LibGuard knows.",
    )
    doctor.add_argument("folder", type=Path, help="the WebUI's folder, which holds launch.py")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    inspect = commands.add_parser(
        "inspect",
        help="what a model file is, and whether its numbers are sound",
        description="Reads a .safetensors file: its kind, the models it is made for, what it needs, and whether it"
        " holds inf or NaN. Exit status: 0 it could be read, 1 it could not.",
    )
    inspect.add_argument("file", type=Path, help="a .safetensors file")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    explain = commands.add_parser(
        "explain",
        help="the cause of an error, and its cure, from its text",
        description="Tells what caused an error that a program has printed, what of the text shows it, and what to do"
        " about it. Works for any program's error, and needs no torch. Exit status: 0 explained, 1 not known.",
    )
    explain.add_argument("text", nargs="*", help="the error, or a whole traceback; from standard input where left out")
    explain.add_argument("--json", action="store_true", help="print JSON")
    return parser


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

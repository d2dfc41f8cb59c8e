"""LibGuard from outside of a WebUI: `python -m lib_guard doctor FOLDER [--json]`, in LibGuard's folder.

Any Python from 3.10 on will do that has torch, which the WebUI's own has: the adapters are written with its types.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

#: Exit statuses. PROBLEM: something that LibGuard needs is missing. UNKNOWN: the question itself cannot be answered.
GOOD, PROBLEM, UNKNOWN = 0, 1, 2


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    if sys.version_info < (3, 10):  # noqa: UP036 - it is this very check that tells an older Python's user
        print("LibGuard needs Python 3.10 or newer; this is", sys.version.split()[0], file=sys.stderr)
        return UNKNOWN
    options = _parser().parse_args(arguments)
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


def _lacks(package: str, folder: Path) -> str:
    places = [place / name for place in (folder, folder.resolve().parent) for name in ("venv", ".venv")]
    inside = ("bin/python", "Scripts/python.exe")
    python = next((place / name for place in places for name in inside if (place / name).is_file()), None)
    own = f"{python} -m lib_guard doctor {folder}" if python else "the WebUI's own Python has it"
    return f"The doctor needs {package}, which {sys.executable} does not have; try: {own}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lib_guard")
    commands = parser.add_subparsers(title="commands", required=True)
    doctor = commands.add_parser(
        "doctor",
        help="what LibGuard would find in a WebUI, without starting it",
        description="Looks at a WebUI's files and executes none of them."
        " Exit status: 0 all is there, 1 something is missing, 2 the folder holds no WebUI that LibGuard knows.",
    )
    doctor.add_argument("folder", type=Path, help="the WebUI's folder, which holds launch.py")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    return parser


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""Run by a WebUI when the extension is installed and at each start: says what LibGuard needs and does not find.

Every supported WebUI brings all of it along, so nothing is ever installed or downloaded from here.
"""

import re
import sys
from importlib import metadata

PYTHON = (3, 10)
#: Package -> the lowest version that LibGuard was tried with.
NEEDED = {"torch": (2, 1), "safetensors": (0, 3)}


def problems():
    """What is missing or too old, one clause each."""
    found = []
    if sys.version_info < PYTHON:
        found.append(f"Python {_dotted(sys.version_info[:2])} is older than {_dotted(PYTHON)}")
    for package, lowest in NEEDED.items():
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            found.append(f"{package} is not installed")
            continue
        if _numbers(version) < lowest:
            found.append(f"{package} {version} is older than {_dotted(lowest)}")
    return found


def _numbers(version):
    """`2.13.0+cpu` -> (2, 13)."""
    leading = re.match(r"(\d+)(?:\.(\d+))?", version)
    return tuple(int(number or 0) for number in leading.groups()) if leading else ()


def _dotted(numbers):
    return ".".join(map(str, numbers))


if __name__ == "__main__":
    for problem in problems():
        print(f"[LibGuard] cannot work here: {problem}")

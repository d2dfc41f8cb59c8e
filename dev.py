#!/usr/bin/env python3
"""Sets up everything that developing LibGuard needs, and runs it. Only the standard library, Python 3.10 or newer.

python dev.py demo [--check] [--json FILE] [...]   the embedded host, or the table of faults
python dev.py test [pytest arguments]              lint, types and tests; with arguments only pytest
python dev.py run TOOL [arguments]                 a tool of the environment, such as ruff
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from demo import browser

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
REQUIREMENTS = ROOT / "requirements-dev.txt"


def main(arguments: list[str]) -> int:
    """Run one command; returns its exit status."""
    if sys.version_info < (3, 10):  # noqa: UP036 - it is this very check that tells an older Python's user
        print("LibGuard's tools need Python 3.10 or newer; this is", sys.version.split()[0])
        return 2
    commands = {"demo": demo, "test": test, "run": run_tool}
    if not arguments or arguments[0] not in commands:
        print(__doc__)
        return 2
    set_up()
    return commands[arguments[0]](arguments[1:])


def demo(arguments: list[str]) -> int:
    """Open the embedded host, or check the faults (`--check`)."""
    return run("-m", "demo", *arguments)


def test(arguments: list[str]) -> int:
    """Everything that must hold before a change lands; with arguments, only pytest with these."""
    find_browser()
    if arguments:
        return run("-m", "pytest", *arguments)
    for step in (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",), ("pytest",)):
        print("+", *step, flush=True)
        status = run("-m", *step)
        if status:
            return status
    return 0


def run_tool(arguments: list[str]) -> int:
    """A tool that the environment holds, as a module."""
    return run("-m", *arguments)


def set_up() -> None:
    """Make the environment, or bring it up to date; a stamp says which requirements it was made from."""
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()
    stamp = ENVIRONMENT / "requirements.sha256"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    if not python().is_file():
        print(f"Making {ENVIRONMENT.name} ...", flush=True)
        venv.create(ENVIRONMENT, with_pip=True, clear=ENVIRONMENT.exists())
    print(f"Installing {REQUIREMENTS.name} (some minutes the first time) ...", flush=True)
    if run("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(REQUIREMENTS)):
        raise SystemExit("The packages could not be installed; the lines above say which one failed.")
    stamp.write_text(wanted)


def find_browser() -> None:
    """Tell the tests of a browser through LIB_GUARD_BROWSER: an installed one, else one that can be had here."""
    found = browser.find() or playwright_browser() or debian_browser() or downloaded_browser()
    if found:
        os.environ["LIB_GUARD_BROWSER"] = found
    else:
        print("No Chromium was found or could be installed: the browser test will be skipped.", flush=True)


def playwright_browser() -> str:
    """The path of Playwright's own Chromium if it has been downloaded before, or `` ."""
    code = "from playwright.sync_api import sync_playwright as p\nwith p() as x: print(x.chromium.executable_path)"
    shown = subprocess.run([python(), "-c", code], capture_output=True, text=True, check=False).stdout.strip()
    return shown if shown and Path(shown).is_file() else ""


def debian_browser() -> str:
    """Install Debian's Chromium where this is root on such a system; its path, or `` ."""
    if not shutil.which("apt-get") or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return ""
    print("Installing Debian's Chromium for the browser test ...", flush=True)
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "chromium"]):
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return browser.find()


def downloaded_browser() -> str:
    """Have Playwright download its Chromium; its path, or `` where that is not to be had."""
    print("Downloading Playwright's Chromium for the browser test ...", flush=True)
    command = [python(), "-m", "playwright", "install", "chromium"]
    try:
        subprocess.run(command, capture_output=True, timeout=300, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return playwright_browser()


def run(*arguments: str) -> int:
    """Run the environment's Python with these arguments in the repository's root."""
    return subprocess.run([python(), *arguments], cwd=ROOT, check=False).returncode


def python() -> Path:
    """The environment's interpreter."""
    return ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

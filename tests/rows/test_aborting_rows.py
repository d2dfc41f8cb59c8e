"""P15 on the embedded host: a device that ends the process instead of raising."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from aborting_host import ABORTED

from demo.bench import DEFAULT_DATA

SCRIPT = Path(__file__).resolve().parent / "aborting_host.py"

#: Faults that a half model meets on such a device, and whether a clean picture exists to compare with.
FAULTS = {
    "P07-D-sd15-fp16-img2img": True,
    "P07-D-sdxl-bf16-hires": True,
    "P11-D-context-sd15": False,
    "P11-D-bf16-block": False,
    "P13-D-sd15-fp32-in-fp16": False,
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"P15-D-{fault}")
def test_row(bench, tmp_path, fault):
    """`bench` has built the models by now."""
    command = [sys.executable, str(SCRIPT), fault, str(tmp_path), str(DEFAULT_DATA / "models")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith(("clean", "with")))
    assert done.returncode == ABORTED and "without" not in said, (done.returncode, done.stdout, done.stderr[-2000:])
    picture, *codes = said["with"].split()
    assert picture != "flat" and codes and all(code.startswith("LG1") for code in codes)
    assert not FAULTS[fault] or picture == said["clean"]

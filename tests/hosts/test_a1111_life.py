"""Installing LibGuard on AUTOMATIC1111 the way its users do, and what the adapter relies on, read from its source."""

from __future__ import annotations

from pathlib import Path

import pytest
from a1111_rows import start
from harness.install import prove_install_from_url
from harness.keeper import Keeper
from harness.kinds import A1111

from lib_guard.hosts.a1111 import A1111Host
from lib_guard.hosts.detect import find_adapter
from lib_guard.hosts.seams import problem_in_source


@pytest.mark.parametrize("row_id", ["A-install"])
def test_install_from_url(a1111: Keeper, tmp_path: Path, row_id: str) -> None:
    try:
        prove_install_from_url(start(a1111, "full"), tmp_path)
    finally:
        a1111.close()


@pytest.mark.parametrize("row_id", ["A-seams"])
def test_what_the_adapter_relies_on_is_in_the_source(row_id: str) -> None:
    folder = A1111.folder()
    if folder is None:
        pytest.skip(f"set {A1111.variable} to the folder of an installed {A1111.title}")
    assert find_adapter(folder) is A1111Host
    assert [problem for seam in A1111Host.seams if (problem := problem_in_source(seam, folder))] == []

"""Installing LibGuard on SD.Next the way its users do."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness.install import prove_install_from_url
from harness.keeper import Keeper


@pytest.mark.parametrize("row_id", ["S-install"])
def test_install_from_url(sdnext: Keeper, tmp_path: Path, row_id: str) -> None:
    try:
        prove_install_from_url(sdnext(), tmp_path)
    finally:
        sdnext.close()

"""The hosts as fixtures. A row asks for `sdnext`, `a1111` or `forge` and calls it with the flags it needs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from harness.keeper import Keeper  # noqa: E402 - the path comes first
from harness.kinds import KINDS  # noqa: E402
from harness.proof import TABLE  # noqa: E402

#: Where the results are left for `table.py`; ignored by git.
RESULTS = HERE.parents[1] / ".demo" / "hosts"


def _keeper(name: str) -> Iterator[Keeper]:
    keeper = Keeper(KINDS[name])
    try:
        yield keeper
    finally:
        keeper.close()
    assert keeper.changed() == "", f"{KINDS[name].title}'s folder is not as it was"


@pytest.fixture(scope="session")
def sdnext() -> Iterator[Keeper]:
    """SD.Next."""
    yield from _keeper("sdnext")


@pytest.fixture(scope="session")
def a1111() -> Iterator[Keeper]:
    """AUTOMATIC1111."""
    yield from _keeper("a1111")


@pytest.fixture(scope="session")
def forge() -> Iterator[Keeper]:
    """Forge."""
    yield from _keeper("forge")


def pytest_sessionfinish() -> None:
    """Leave the results for the table in docs/hosts.md."""
    TABLE.write(RESULTS)

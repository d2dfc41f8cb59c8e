"""Rows P06 to P09 on the embedded host: each fails without LibGuard and is clean with it, in the same run."""

from __future__ import annotations

import pytest

from demo.check import check
from demo.faults import FAULTS

#: Which code a row's fault is known by.
CODES = {
    "P06-D": {"LG101", "LG103"},
    "P07-D": {"LG101", "LG102"},
    "P08-D": {"LG101", "LG102", "LG103"},
    "P09-D": {"LG101"},
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.id)
def test_row(bench, fault):
    row = check(bench, fault)
    assert row.failed_without, f"it does not fail without LibGuard, so it proves nothing: {row.without}"
    assert row.cured, row.with_
    assert row.codes and set(row.codes) <= CODES[fault.id[:5]]


@pytest.mark.parametrize(
    "fault", [f for f in FAULTS if f.id[:3] in ("P07", "P08")], ids=lambda f: f"sdnext-order-{f.id}"
)
def test_row_where_the_host_swallows_errors(sdnext_bench, fault):
    """SD.Next's order of callbacks: a failure is HTTP 200 without a picture, or a Detailer that does nothing."""
    row = check(sdnext_bench, fault)
    assert row.failed_without and row.cured, (row.without, row.with_)

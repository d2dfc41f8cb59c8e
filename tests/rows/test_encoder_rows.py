"""The IP-Adapter rows on the embedded host, by pixels."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from demo.check import OFF, ON, check
from demo.encoder_faults import ENCODER_FAULTS, LIGHT, PLUS, VIT_H, with_adapters
from demo.faults import HEALTHY, Fault, pictures, send


def expected(fault: Fault) -> str:
    if fault.id == "E04-D-refiner":
        return "LG408"
    return {"E02": "LG403", "E04": "LG404"}.get(fault.id[:3], "LG401")


@pytest.mark.parametrize("fault", ENCODER_FAULTS, ids=lambda fault: fault.id)
def test_row(bench, fault):
    row = check(bench, fault)
    assert row.failed_without, f"it does not fail without LibGuard, so it proves nothing: {row.without}"
    assert row.cured, row.with_
    assert row.codes == (expected(fault),)


SWALLOWED = [fault for fault in ENCODER_FAULTS if fault.id in ("E01-D-to-vit-G", "E02-D-three", "E04-D")]


@pytest.mark.parametrize("fault", SWALLOWED, ids=lambda fault: f"sdnext-order-{fault.id}")
def test_row_where_the_host_swallows_errors(sdnext_bench, fault):
    row = check(sdnext_bench, fault)
    assert row.failed_without and row.cured, (row.without, row.with_)


@pytest.mark.parametrize("row", ["E06-D"])
def test_one_family_again_and_again(bench, capfd, row):
    """The encoder stays loaded, and nothing is said."""
    bench.post("/sdapi/v1/unload-checkpoint")
    bench.options(**HEALTHY)
    calls = [with_adapters(*names) for names in ((VIT_H,), (LIGHT,), (VIT_H, LIGHT), (PLUS,), (VIT_H,))]
    without = [pictures(send(bench, call, OFF))[0] for call in calls]
    encoder = bench.shared.sd_model.image_encoder
    capfd.readouterr()
    with_ = [pictures(send(bench, call, ON))[0] for call in calls]
    assert all(map(np.array_equal, with_, without))
    assert bench.shared.sd_model.image_encoder is encoder
    assert "[LibGuard]" not in capfd.readouterr().err
    generations = sys.modules["lib_guard.ledger"].LEDGER.generations()[-len(calls) :]
    assert [generation.entries for generation in generations] == [[]] * len(calls)

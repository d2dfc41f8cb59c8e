"""The precision rows on the embedded host: each fails without LibGuard and is clean with it, in the same run."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from demo.bench import Bench
from demo.check import OFF, ON, check
from demo.faults import BASE, FAULTS, HEALTHY, Call, Fault, pictures, send

PRECISION = [fault for fault in FAULTS if fault.id.startswith("P")]

#: Which codes a row's fault is known by. Where a text encoder speaks in float32, the latents come to the VAE so too.
CODES = {
    "P06-D": {"LG101", "LG103"},
    "P07-D": {"LG101", "LG102"},
    "P08-D": {"LG101", "LG102", "LG103"},
    "P09-D": {"LG101"},
    "P10-D": {"LG111"},
    "P11-D": {"LG101", "LG111", "LG112"},
    "P13-D": {"LG112"},
    "P14-D": {"LG101", "LG111", "LG112", "LG113"},
    "P16-D": {"LG101", "LG102"},
}

#: In grey levels of 255: how far a repaired picture may be from that of the undamaged model. Measured: 2.4 at most.
NEAR = 5.0


@pytest.mark.parametrize("fault", PRECISION, ids=lambda fault: fault.id)
def test_row(bench, fault):
    row = check(bench, fault)
    assert row.failed_without, f"it does not fail without LibGuard, so it proves nothing: {row.without}"
    assert row.cured, row.with_
    assert row.codes and set(row.codes) <= CODES[fault.id[:5]]


def undamaged(fault: Fault) -> dict[str, object]:
    return {**HEALTHY, **fault.options, "controlnet_dtype": HEALTHY["controlnet_dtype"]}


@pytest.mark.parametrize(
    "fault", [f for f in PRECISION if f.clean is None], ids=lambda fault: f"near-the-healthy-{fault.id}"
)
def test_a_picture_without_a_clean_reference_is_near_the_undamaged_models(bench, fault):
    bench.options(**undamaged(fault))
    healthy = pictures(fault.run(bench, OFF))
    try:
        fault.provoke(bench)
        repaired = pictures(fault.run(bench, ON))
    finally:
        fault.heal(bench)
    gap = np.abs(healthy[0].astype(int) - repaired[0].astype(int)).mean()
    print(f"{fault.id}: {gap:.3f} grey levels")
    assert gap < NEAR


@pytest.mark.parametrize(
    "fault", [f for f in PRECISION if f.id[:3] in ("P07", "P08", "P10")], ids=lambda f: f"sdnext-order-{f.id}"
)
def test_row_where_the_host_swallows_errors(sdnext_bench, fault):
    """SD.Next's order of callbacks: a failure is HTTP 200 without a picture, or a Detailer that does nothing."""
    row = check(sdnext_bench, fault)
    assert row.failed_without and row.cured, (row.without, row.with_)


@pytest.mark.parametrize("row", ["P07-D-live-preview"])
def test_row_in_the_thread_of_a_live_preview(bench, row):
    """A float32 VAE beside a half model: without LibGuard there is no preview either."""
    call = Call("txt2img", {**BASE, "steps": 30})
    bench.options(cuda_dtype="FP16", no_half_vae=True, live_previews=True)
    assert previews_of(bench, call, OFF) == 0
    assert previews_of(bench, call, ON) > 0


def previews_of(bench: Bench, call: Call, scripts: dict[str, Any]) -> int:
    """How many previews an onlooker gets while a request is being worked on."""
    worker = threading.Thread(target=send, args=(bench, call, scripts))
    worker.start()
    seen = 0
    while worker.is_alive():
        seen += bench.get("/sdapi/v1/progress").json["current_image"] is not None
    worker.join()
    return seen

"""Row L17 on the embedded host: LoRAs that were made for another family are said to be, before anything is sampled, and
the rest of the request runs."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from demo.check import OFF, ON, check
from demo.faults import Call, Fault, pictures, send
from demo.lora_faults import CRIMSON, with_loras
from demo.lora_file_faults import LORA_FILE_FAULTS

#: Row -> what the LoRA's deciding tensor and the model's are like.
DECIDING = {
    "L17-D-sdxl-on-sd15": ("made for SDXL", "[4, 2048]", "the model is SD1.5", "[32, 32]"),
    "L17-D-sd2-on-sd15": ("made for SD2", "[4, 1024]", "the model is SD1.5", "[32, 32]"),
    "L17-D-flux-on-sdxl": ("made for FLUX.1", "[12288, 4]", "the model is SDXL", "[64, 64]"),
}


def entries() -> list[Any]:
    last = sys.modules["lib_guard.ledger"].LEDGER.last()
    return list(last.entries) if last else []


@pytest.fixture
def provoked(bench, fault):
    fault.provoke(bench)
    yield bench
    fault.heal(bench)


def picture(bench: Any, call: Call, scripts: dict[str, Any]) -> np.ndarray:
    reply = send(bench, call, scripts)
    assert reply.status == 200, reply.json
    (found,) = pictures(reply)
    return found


every = pytest.mark.parametrize("fault", LORA_FILE_FAULTS, ids=lambda fault: fault.id)


@every
def test_row(bench, fault):
    row = check(bench, fault)
    assert row.failed_without, f"it does not fail without LibGuard, so it proves nothing: {row.without}"
    assert row.cured, row.with_
    assert row.codes == ("LG304",)


@every
def test_row_where_the_host_swallows_errors(sdnext_bench, fault):
    row = check(sdnext_bench, fault)
    assert row.failed_without and row.cured and row.codes == ("LG304",), (row.without, row.with_, row.codes)


@every
def test_it_is_said_before_the_first_step_with_both_tensors(provoked, fault, capfd):
    plain = picture(provoked, fault.lost, OFF)
    said_by: list[str] = []

    def look(*_: Any) -> None:
        if not said_by:
            said_by.append(capfd.readouterr().err)

    with_hook = provoked.shared.sd_model.unet.register_forward_pre_hook(look)
    try:
        found = picture(provoked, fault.request, ON)
    finally:
        with_hook.remove()
    assert np.array_equal(found, plain)
    (line,) = [line for line in said_by[0].splitlines() if "LibGuard" in line]
    assert "LG304" in line and all(part in line for part in DECIDING[fault.id])
    (entry,) = entries()
    assert entry.count == 1 and entry.repair is None


@every
def test_it_is_said_again_only_where_it_is_asked_for_anew(provoked, fault):
    """The second request finds the model as the first one left it, and the third asks for nothing."""
    for call in (fault.request, fault.lost):
        picture(provoked, call, ON)
    assert entries() == []
    picture(provoked, fault.request, ON)
    assert [entry.finding.code for entry in entries()] == ["LG304"]


def silenced(names: str) -> dict[str, str]:
    return {"lib_guard_lora_silenced": names}


@pytest.mark.parametrize("fault", LORA_FILE_FAULTS[:1], ids=lambda fault: fault.id)
def test_nothing_is_said_of_a_silenced_lora(provoked, fault):
    provoked.options(**silenced("something, MADE-for-SDXL"))
    try:
        picture(provoked, fault.request, ON)
        assert entries() == []
    finally:
        provoked.options(**silenced(""))


@pytest.mark.parametrize("tags", [("made-for-sdxl:1", "tiny-crimson:1"), ("tiny-crimson:1", "made-for-sd2:1")])
def test_the_other_loras_of_the_request_work(bench, tags):
    alone = picture(bench, CRIMSON, OFF)
    fault = Fault("both", "", {}, with_loras(*tags))
    assert np.array_equal(picture(bench, fault.request, ON), alone)
    assert [entry.finding.code for entry in entries()] == ["LG304"]

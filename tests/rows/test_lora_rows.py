"""The LoRA rows on the embedded host: by pixels and by weights, bit for bit."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from demo.check import OFF, ON, check
from demo.faults import Fault, pictures, send
from demo.lora_faults import CRIMSON, LORA_FAULTS


def by_id(fault: Fault) -> str:
    return fault.id


def entries() -> list[Any]:
    return sys.modules["lib_guard.ledger"].LEDGER.last().entries


def weights(bench: Any) -> dict[str, torch.Tensor]:
    """A copy of everything that a LoRA can change."""
    pipe = bench.shared.sd_model
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    return {
        f"{part}.{name}": one.clone() for part, module in parts.items() for name, one in module.state_dict().items()
    }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("fault", LORA_FAULTS, ids=by_id)
def test_row(bench, fault):
    row = check(bench, fault)
    assert row.failed_without, f"it does not fail without LibGuard, so it proves nothing: {row.without}"
    assert row.cured, row.with_
    assert row.codes == (fault.told or "LG301",)


@pytest.mark.parametrize(
    "fault",
    [fault for fault in LORA_FAULTS if fault.id in ("L15-D-1", "L16-D-again")],
    ids=lambda fault: f"sdnext-order-{fault.id}",
)
def test_row_where_the_host_swallows_errors(sdnext_bench, fault):
    row = check(sdnext_bench, fault)
    assert row.failed_without and row.cured, (row.without, row.with_)


LEFT = [fault for fault in LORA_FAULTS if fault.id in ("L15-D-1", "L15-D-10", "L16-D-none")]


@pytest.mark.parametrize("fault", LEFT, ids=lambda fault: f"{fault.id}-weights")
def test_weights_are_the_checkpoints_again(bench, fault):
    fault.provoke(bench)
    before = weights(bench)
    try:
        fault.run(bench, OFF)
        assert not same(weights(bench), before), "it does not fail without LibGuard"
        fault.heal(bench)
        fault.provoke(bench)
        fault.run(bench, ON)
        assert same(weights(bench), before)
        (entry,) = entries()
        assert entry.finding.code == "LG301" and "tiny-crimson" in entry.finding.saw and entry.count == 1
        assert entry.repair.did == "restored from the checkpoint's file" and entry.repair.proof == "bit-exact"
    finally:
        fault.heal(bench)
    assert pictures(send(bench, CRIMSON, ON)) and entries() == []

"""The embedded host on a device that ends the process where operands of a matrix operation differ in dtype, as MPS
does: `python tests/rows/aborting_host.py FAULT_ID DATA_FOLDER MODELS_FOLDER`.

The device is the CPU under a mode that stands in for the driver. Printed are the hashes of the clean picture and of
the one with LibGuard; then comes the request without LibGuard, of which nothing should be printed.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch
from torch.overrides import TorchFunctionMode

from demo import bench as benches
from demo.check import OFF, ON
from demo.faults import FAULTS, pictures

#: The exit status of a process that SIGABRT ended, as a shell tells it.
ABORTED = 134

#: By name, so that this device shares no list with what is tested.
MATRIX = ("conv2d", "linear", "matmul", "bmm", "baddbmm", "addmm", "scaled_dot_product_attention", "group_norm")


class Device(TorchFunctionMode):
    """Below every mode that is entered later, LibGuard's among them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        values = (*args, *(kwargs or {}).values())
        floating = {v.dtype for v in values if isinstance(v, torch.Tensor) and v.is_floating_point()}
        if getattr(func, "__name__", "") in MATRIX and len(floating) > 1:
            sys.stdout.flush()
            os._exit(ABORTED)
        return func(*args, **(kwargs or {}))


def main(fault_id: str, data: str, models: str) -> None:
    bench = benches.start(data, models_dir=models)
    fault = next(fault for fault in FAULTS if fault.id == fault_id)
    run_on_the_device(sys.modules["modules.call_queue"])
    sys.modules["lib_guard.tensors.reconcile"].ABORTING_DEVICES = frozenset({"cpu"})
    fault.provoke(bench)
    clean = fault.reference(bench, OFF)
    print("clean", digest(clean[0]) if clean else "", flush=True)
    reply = fault.run(bench, ON)
    codes = [entry.finding.code for entry in sys.modules["lib_guard.ledger"].LEDGER.last().entries]
    print("with", digest(pictures(reply)[0]) if reply.status == 200 else reply.json, *codes, flush=True)
    print("without", fault.run(bench, OFF).status, flush=True)
    bench.close()


def run_on_the_device(call_queue: Any) -> None:
    """Modes are a thread's own, and a generation runs in a thread of the server's."""
    generate = call_queue.generate

    def on_the_device(*args: Any, **kwargs: Any) -> Any:
        with Device():
            return generate(*args, **kwargs)

    call_queue.generate = on_the_device


def digest(picture: Any) -> str:
    return hashlib.sha256(picture.tobytes()).hexdigest()[:16] if picture.std() > 1 else "flat"


if __name__ == "__main__":
    main(*sys.argv[1:])

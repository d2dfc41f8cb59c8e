"""What the encoder guard costs: `python dev.py run benchmarks.encoder`.

Requests to the embedded host, alternately with the guard off and on, in one run; ratios of medians. Its models are tiny
but for the image encoders' widths, so that the guard's part is far larger here than beside a real model's.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from demo import bench as benches
from demo.bench import Bench
from demo.encoder_faults import VIT_BIGG, VIT_H, with_adapters
from demo.faults import TXT2IMG, Call, send

ROUNDS = 15
OFF, ON = ({"LibGuard": {"args": [True, "off", "auto", "off", "off", policy]}} for policy in ("off", "fix"))


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory(prefix="lib-guard-benchmark-") as folder:
        bench = benches.start(folder, models_dir=benches.DEFAULT_DATA / "models")
        try:
            show("plain request: guarded / not", bench, TXT2IMG, lambda: None)
            show("the same adapter again: guarded / not", bench, with_adapters(VIT_H), lambda: None)
            show_switch(bench)
        finally:
            bench.close()


def show(title: str, bench: Bench, call: Call, prepare: Callable[[], None]) -> None:
    """One ratio of a request with the guard to the same without."""
    for scripts in (OFF, ON, OFF, ON):
        send(bench, call, scripts)
    found: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for guarded in (False, True):
            prepare()
            found[guarded].append(seconds(bench, call, ON if guarded else OFF))
    without, with_ = (statistics.median(found[guarded]) for guarded in (False, True))
    print(f"{title:60} {with_ / without:7.3f}   ({1000 * (with_ - without):+.1f} ms of {1000 * without:.0f} ms)")


def show_switch(bench: Bench) -> None:
    """A switch of family with the guard, against one for which the user has unloaded the encoder by hand."""
    found: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(ROUNDS):
        for guarded in (False, True):
            here, there = (VIT_H, VIT_BIGG) if turn % 2 else (VIT_BIGG, VIT_H)
            send(bench, with_adapters(here), ON)
            if not guarded:
                bench.shared.sd_model.register_modules(image_encoder=None)
            found[guarded].append(seconds(bench, with_adapters(there), ON if guarded else OFF))
    without, with_ = (statistics.median(found[guarded]) for guarded in (False, True))
    title = "switch of family: by the guard / encoder unloaded by hand"
    print(f"{title:60} {with_ / without:7.3f}   ({1000 * (with_ - without):+.1f} ms of {1000 * without:.0f} ms)")


def seconds(bench: Bench, call: Call, scripts: dict[str, Any]) -> float:
    """How long a request takes. Raises RuntimeError when it fails."""
    started = time.perf_counter()
    reply = send(bench, call, scripts)
    if reply.status != 200:
        raise RuntimeError(f"the request failed: {reply.json}")
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

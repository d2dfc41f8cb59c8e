"""A LoRA's rest taken out, against the host's own loading of the checkpoint: `python dev.py run benchmarks.hosts`.

In running WebUIs, those that LIB_GUARD_A1111, LIB_GUARD_FORGE and LIB_GUARD_SDNEXT name; on models of Stable Diffusion
1.5's real size, but for SD.Next's, which is tiny. Medians of one run.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "hosts"))

from a1111_rows import loaded
from harness.keeper import Host, Keeper
from harness.kinds import A1111_REAL_SIZE, KINDS
from harness.proof import BASE, OFF, ON

ROUNDS = 5
QUICK = {**BASE, "steps": 1}


def _tagged(name: str) -> dict[str, Any]:
    return {**QUICK, "prompt": f"a red cat <lora:{name}:1>"}


#: Host -> the LoRA that is left, and the request that leaves it where no host takes it out by itself.
LEFT: dict[str, tuple[str, dict[str, Any]]] = {
    "a1111": ("redlora", {**QUICK, "disable_extra_networks": True}),
    "forge": ("redlora", {**QUICK, "disable_extra_networks": True}),
    "sdnext": ("tiny-crimson", QUICK),
}


def main() -> None:
    """Print the table."""
    for name, kind in {**KINDS, "a1111": A1111_REAL_SIZE}.items():
        if kind.folder() is None:
            print(f"{kind.title}: {kind.variable} is not set")
            continue
        keeper = Keeper(kind)
        try:
            host = loaded(keeper(flags=("--no-half",))) if name == "a1111" else keeper()
            _measure(kind.title, host, *LEFT[name])
        finally:
            keeper.close()


def _measure(title: str, host: Host, lora: str, plain: dict[str, Any]) -> None:
    host.generate("txt2img", QUICK, OFF)
    repairs: list[float] = []
    for _ in range(ROUNDS):
        host.generate("txt2img", _tagged(lora), ON)
        host.generate("txt2img", plain, ON)
        (entry,) = [one for one in host.probe.entries() if one["code"] == "LG301"]
        assert entry["proof"] == "bit-exact", entry
        repairs.append(entry["milliseconds"])
    loads = [float(host.probe("reload_checkpoint")) for _ in range(3)]
    repair, loading = statistics.median(repairs), statistics.median(loads)
    print(f"{title:<16} {entry['did']:<40} {repair:8.1f} ms; loading {loading:9.1f} ms, 1/{loading / repair:.0f} of it")


if __name__ == "__main__":
    main()

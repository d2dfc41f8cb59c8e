"""Rows N01 and N02 on a running SD.Next, and the accordion's VAE precision.

SD.Next casts what is not finite to zeros (processing_helpers.py:343), so that a failure is one flat picture; and it
marks the VAE to be upcast from then on, so that each request here begins with weights fresh from the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from harness.keeper import Host, Keeper
from harness.proof import BASE, INIT, OFF, ON, TABLE, TITLE, Result, digest, fresh, same
from sdnext_rows import SD15, SDXL_FIX, options, select

#: LibGuard's accordion with "VAE precision" at float32.
CHOSEN: dict[str, Any] = {TITLE: {"args": [True, "fix", "float32"]}}

REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "txt2img": ("txt2img", BASE),
    "img2img": ("img2img", {**BASE, **INIT}),
}


@contextmanager
def upcast(host: Host, damage: str) -> Iterator[None]:
    """Settings > Variational Auto Encoder > "VAE upcasting" on: decode is in float32, with SDXL encode as well."""
    with options(host, {"diffusers_vae_upcast": "true"}, {"diffusers_vae_upcast": "default"}):
        fresh(host, damage)
        yield


@contextmanager
def full(host: Host, damage: str) -> Iterator[None]:
    """... > "Full precision (--no-half-vae)" on, and callers that mind it: encode and decode are in float32."""
    with options(host, {"no_half_vae": True}, {"no_half_vae": False}):
        fresh(host, damage)
        host.probe.align(True)
        yield
        host.probe.align(False)


Healthy = Callable[[Host, str], Any]

#: Part of the id -> checkpoint, setting of "VAE upcasting", request, healthy configuration, directions that overflow.
OVERFLOWS: dict[str, tuple[str, str, str, Healthy, str]] = {
    "sdxl-txt2img": (SDXL_FIX, "default", "txt2img", upcast, "decode"),
    "sdxl-img2img": (SDXL_FIX, "default", "img2img", upcast, "encode decode"),
    "sd15-txt2img": (SD15, "false", "txt2img", full, "decode"),
    # SD.Next upcasts this VAE by itself, but only to decode.
    "sd15-img2img": (SD15, "default", "img2img", full, "encode"),
}


@pytest.mark.parametrize("key", [pytest.param(key, id=f"N01-S-{key}") for key in OVERFLOWS])
def test_overflow(sdnext: Keeper, key: str) -> None:
    checkpoint, upcasting, request, healthy, directions = OVERFLOWS[key]
    host = select(sdnext(cuda_dtype="FP16"), checkpoint)
    result = TABLE.add(host, Result(f"N01-S-{key}", f"A VAE that overflows in float16: {request}"))

    with healthy(host, "overflow"):
        reference = host.generate(*REQUESTS[request], OFF).pictures
    with options(host, {"diffusers_vae_upcast": upcasting}, {"diffusers_vae_upcast": "default"}):
        fresh(host, "overflow")
        mark = host.mark()
        without = host.generate(*REQUESTS[request], OFF).pictures
        result.without = f"{told(without)}: {'invalid value' if 'failed to validate' in host.output()[mark:] else ''}"
        fresh(host, "overflow")
        before, mark = host.probe.weights(), host.mark()
        pictures = host.generate(*REQUESTS[request], ON).pictures
        entries, said = host.probe.entries(), host.said(mark)
        assert host.probe.weights() == before and host.probe.marks() == []
        again = host.generate(*REQUESTS[request], OFF).pictures

    result.reference, result.with_ = digest(reference), digest(pictures)
    result.codes = " ".join(dict.fromkeys(entry["code"] for entry in entries))
    result.milliseconds = sum(entry["milliseconds"] for entry in entries)
    assert is_flat(without) and "invalid value" in result.without, "it does not fail without LibGuard"
    assert not is_flat(reference) and same(pictures, reference)
    assert [entry["direction"] for entry in entries] == directions.split()
    assert result.codes == "LG201" and all("float32" in entry["did"] and entry["proof"] for entry in entries)
    assert len(said) == len(entries) and all("LG201" in line for line in said)
    assert is_flat(again), "LibGuard has left the VAE in another state"
    result.passed = True


@pytest.mark.parametrize("row", ["N02-S"])
def test_infinite_lora(sdnext: Keeper, row: str) -> None:
    """Nothing can bring the picture back; what is said names the step and the file."""
    host = select(sdnext(cuda_dtype="FP16"), SDXL_FIX)
    host.options(sd_model_checkpoint=SD15)
    body = {**BASE, "prompt": "a red cat <lora:tiny-overflown:1>"}
    result = TABLE.add(host, Result(row, "A LoRA whose file holds inf"))
    fresh(host)
    result.without = told(host.generate("txt2img", body, OFF).pictures)
    fresh(host)
    mark = host.mark()
    result.with_ = told(host.generate("txt2img", body, ON).pictures)
    entries, said = host.probe.entries(), host.said(mark)
    result.codes = " ".join(entry["code"] for entry in entries)
    assert result.without == result.with_ == "one flat colour"
    assert result.codes == "LG202" and entries[0]["did"] is None and len(said) == 1
    assert (entries[0]["evidence"]["step"], entries[0]["evidence"]["steps"]) == (1, BASE["steps"])
    assert "tiny-overflown" in entries[0]["evidence"]["loras"] and "inf" in entries[0]["evidence"]["loras"]
    assert host.probe.marks() == []
    result.passed = True


@pytest.mark.parametrize("kind", [pytest.param(kind, id=f"N01-S-chosen-{kind}") for kind in REQUESTS])
def test_chosen_precision(sdnext: Keeper, kind: str) -> None:
    """A half VAE computed in float32, as the user chose, is a float32 VAE bit for bit, and stays half."""
    host = select(sdnext(cuda_dtype="FP16"), SDXL_FIX)
    result = TABLE.add(host, Result(f"N01-S-chosen-{kind}", f"VAE precision float32 in the accordion: {kind}"))
    with full(host, ""):
        assert host.probe.dtypes()["vae"].keys() == {"float32"}
        reference = host.generate(*REQUESTS[kind], OFF).pictures
    fresh(host)
    without = host.generate(*REQUESTS[kind], OFF).pictures
    before, mark = host.probe.weights(), host.mark()
    pictures = host.generate(*REQUESTS[kind], CHOSEN).pictures
    result.without, result.with_, result.reference = digest(without), digest(pictures), digest(reference)
    assert same(pictures, reference) and not same(pictures, without)
    assert host.probe.weights() == before and host.probe.dtypes()["vae"].keys() == {"float16"}
    assert host.probe.entries() == [] and host.said(mark) == [] and host.probe.marks() == []
    result.passed = True


def is_flat(pictures: list[np.ndarray]) -> bool:
    return bool(pictures) and all(picture.std() == 0 for picture in pictures)


def told(pictures: list[np.ndarray]) -> str:
    return "one flat colour" if is_flat(pictures) else digest(pictures)

"""Rows N01 and N02 on AUTOMATIC1111, and the accordion's VAE precision.

The host looks for NaN by itself: in what the UNet returns and in what decode returns, not in what encode returns
(devices.py:229). What it does then is a setting: give up (500), or convert the VAE to float32 and decode again.

Clean means: the picture is the one of a float32 copy of the same VAE, given the same latents and pictures, and handing
latents back in the dtype in which it was spoken to.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from a1111_rows import RED, loaded, settle
from harness.keeper import Host, Keeper
from harness.proof import BASE, INIT, OFF, ON, TABLE, TITLE, Result, Row, assert_cured, digest, same

#: LibGuard's accordion with "VAE precision" at float32.
CHOSEN: dict[str, Any] = {TITLE: {"args": [True, "fix", "float32"]}}

#: The host's own fallbacks, switched off.
NO_FALLBACK = {"auto_vae_precision": False, "auto_vae_precision_bfloat16": False}

OVERFLOWS = [
    Row("N01-A-txt2img", "A VAE that overflows in float16", "txt2img", BASE, error="NaN", healthy="float_copy"),
    Row("N01-A-img2img", "the same, img2img", "img2img", {**BASE, **INIT}, error="NaN", healthy="float_copy"),
]


def half(a1111: Keeper, *more: str, **settings: object) -> Host:
    """UNet and VAE in float16, without autocast."""
    return loaded(a1111(flags=("--precision", "half", *more), **settings))


def overflow(host: Host) -> None:
    """Fresh weights in half, and the damage."""
    settle(host)
    host.probe("upcast_vae", on=False)
    host.probe.damage("overflow")


@pytest.mark.parametrize("row", OVERFLOWS, ids=lambda row: row.id)
def test_overflow(a1111: Keeper, row: Row) -> None:
    host = half(a1111, **NO_FALLBACK)
    try:
        assert_cured(host, row, {"LG201"}, lambda: overflow(host))
        assert {entry["direction"] for entry in host.probe.entries()} == (
            {"encode", "decode"} if row.endpoint == "img2img" else {"decode"}
        )
        assert host.probe.dtypes()["vae"].keys() == {"float16"} and "--precision half" in host.said()[-1]
    finally:
        settle(host)


@pytest.mark.parametrize("row_id", ["N01-A-black"])
def test_overflow_where_nobody_looks(a1111: Keeper, row_id: str) -> None:
    """With the host's check off the picture is black; HTTP 200."""
    host = half(a1111, "--disable-nan-check", **NO_FALLBACK)
    result = TABLE.add(host, Result(row_id, "A VAE that overflows in float16, --disable-nan-check"))
    try:
        overflow(host)
        host.probe("float_copy", on=True)
        reference = host.generate("txt2img", BASE, OFF).pictures
        host.probe("float_copy", on=False)
        overflow(host)
        without = host.generate("txt2img", BASE, OFF).pictures
        overflow(host)
        before = host.probe.weights()
        with_ = host.generate("txt2img", BASE, ON).pictures
        result.without, result.with_, result.reference = "HTTP 200, a black picture", digest(with_), digest(reference)
        result.codes = " ".join(entry["code"] for entry in host.probe.entries())
        assert without and all(picture.max() == 0 for picture in without), "it does not fail without LibGuard"
        assert same(with_, reference) and with_[0].std() > 1 and result.codes == "LG201"
        assert host.probe.weights() == before
        result.passed = True
    finally:
        settle(host)


@pytest.mark.parametrize("row_id", ["N01-A-fallback"])
def test_overflow_beside_the_hosts_own_fallback(a1111: Keeper, row_id: str) -> None:
    """The host's fallback gives the picture too, but leaves the VAE in float32; LibGuard leaves it nothing to do."""
    host = half(a1111, auto_vae_precision=True)
    result = TABLE.add(host, Result(row_id, "The same beside auto_vae_precision: the VAE stays as it was"))
    try:
        overflow(host)
        reference = host.generate("txt2img", BASE, OFF).pictures
        result.without = f"the VAE is {' '.join(host.probe.dtypes()['vae'])} from then on"
        overflow(host)
        mark = host.mark()
        with_ = host.generate("txt2img", BASE, ON).pictures
        result.with_, result.reference = digest(with_), digest(reference)
        result.codes = " ".join(entry["code"] for entry in host.probe.entries())
        assert result.without == "the VAE is float32 from then on", "it converts nothing, so this proves nothing"
        assert host.probe.dtypes()["vae"].keys() == {"float16"} and "NaN" not in _without_ours(host, mark)
        # The host scales the latent before the VAE, in half or in float32: at most a level lies between the two.
        gap = np.abs(with_[0].astype(int) - reference[0].astype(int))
        assert with_[0].std() > 1 and gap.max() <= 1 and result.codes == "LG201"
        result.passed = True
    finally:
        host.probe("upcast_vae", on=False)
        settle(host)


def _without_ours(host: Host, mark: int) -> str:
    return "\n".join(line for line in host.output()[mark:].splitlines() if "LibGuard" not in line)


@pytest.mark.parametrize("flag", [pytest.param(flag, id=f"N02-A-{flag or 'checked'}") for flag in ("", "unchecked")])
def test_infinite_lora(a1111: Keeper, flag: str) -> None:
    """Nothing can bring the picture back; what is said names the step and the file, also where the host gives up."""
    host = half(a1111, *(["--disable-nan-check"] if flag else []), **NO_FALLBACK)
    body = {**BASE, "prompt": RED["prompt"].replace("redlora", "inflora")}
    result = TABLE.add(host, Result(f"N02-A-{flag or 'checked'}", "A LoRA whose file holds inf"))
    settle(host)
    without = host.generate("txt2img", body, OFF)
    settle(host)
    mark = host.mark()
    with_ = host.generate("txt2img", body, ON)
    result.without = "a black picture" if without.pictures else without.text[:100]
    entries = host.probe.entries()
    result.codes = " ".join(entry["code"] for entry in entries)
    if flag:
        assert all(picture.max() == 0 for picture in without.pictures + with_.pictures)
    else:
        assert "NansException" in without.text and "NansException" in with_.text
    assert result.codes == "LG202" and entries[0]["did"] is None and len(host.said(mark)) == 1
    assert (entries[0]["evidence"]["step"], entries[0]["evidence"]["steps"]) == (1, BASE["steps"])
    assert "inflora" in entries[0]["evidence"]["loras"] and "inf" in host.said(mark)[0]
    assert host.probe.marks() == []
    settle(host)
    assert host.generate("txt2img", BASE, ON).pictures[0].std() > 1 and host.probe.entries() == []
    result.passed = True


@pytest.mark.parametrize("kind", [pytest.param(kind, id=f"N01-A-chosen-{kind}") for kind in ("txt2img", "img2img")])
def test_chosen_precision(a1111: Keeper, kind: str) -> None:
    """A half VAE computed in float32, as the user chose, is a float32 VAE bit for bit, and stays half."""
    host, body = half(a1111), {**BASE, **(INIT if kind == "img2img" else {})}
    result = TABLE.add(host, Result(f"N01-A-chosen-{kind}", f"VAE precision float32 in the accordion: {kind}"))
    settle(host)
    host.probe("float_copy", on=True)
    try:
        reference = host.generate(kind, body, OFF).pictures
    finally:
        host.probe("float_copy", on=False)
    settle(host)
    without = host.generate(kind, body, OFF).pictures
    # What encode draws comes from a generator that the request before has left behind.
    settle(host)
    before, mark = host.probe.weights(), host.mark()
    pictures = host.generate(kind, body, CHOSEN).pictures
    result.without, result.with_, result.reference = digest(without), digest(pictures), digest(reference)
    assert same(pictures, reference) and not same(pictures, without)
    assert host.probe.weights() == before and host.probe.dtypes()["vae"].keys() == {"float16"}
    assert host.probe.entries() == [] and host.said(mark) == [] and host.probe.marks() == []
    result.passed = True

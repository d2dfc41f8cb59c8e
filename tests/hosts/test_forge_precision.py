"""Rows P06 and P12 on a running Forge: each fails without LibGuard and is clean with it, in the same run.

Forge casts what it hands to the VAE to what the VAE's wrapper believes the VAE to be in (`vae_dtype`), and loading
brings weights and belief to one dtype. Where they differ the healthy configuration is the one in which the belief
follows the weights: what an older conversion has rounded cannot be had back, so no other configuration of this VAE
exists; and it is what Forge makes of such a VAE itself, which `test_as_forge_itself` shows.
"""

from __future__ import annotations

from typing import Any

import pytest
from forge_rows import NOT_TILED, REQUESTS, fresh, fresh_vae
from harness.keeper import Host, Keeper
from harness.proof import BASE, INIT, OFF, ON, TABLE, TITLE, Result, Row, assert_cured, assert_silent, digest, same

POLICY_WARN: dict[str, Any] = {TITLE: {"args": [True, "warn", "auto"]}}

#: Part of the id -> title, damage, request.
MIXED: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "decoder": ("The VAE's decoder was converted to half, the rest was not", "half_decoder", "txt2img", BASE),
    "data": ("An extension assigned half weights through .data", "half_data", "img2img", {**BASE, **INIT}),
    "assign": ("A half VAE was loaded with load_state_dict(assign=True)", "half_state", "img2img", {**BASE, **INIT}),
    "bias": ("One convolution has a half weight and a float bias", "half_weight", "txt2img", BASE),
    "block": ("One block of the VAE is bfloat16", "bfloat_block", "txt2img", BASE),
    "encoder": ("Only the VAE's decoder is float32, the encoder half", "half_encoder", "img2img", {**BASE, **INIT}),
}
COMPARABLE = ("data", "assign")

#: Part of the id -> title, what is done to a VAE that is float32 throughout.
APART: dict[str, tuple[str, tuple[str, dict[str, str]]]] = {
    "weights-half": ("The weights are float16, vae_dtype says float32", ("damage", {"how": "half_state"})),
    "declared-half": ("vae_dtype says float16, the weights are float32", ("declare", {"dtype": "float16"})),
    "declared-bfloat": ("vae_dtype says bfloat16, the weights are float32", ("declare", {"dtype": "bfloat16"})),
}
#: bfloat16 on the plain requests alone: what else there is depends on the way, not on the dtype.
CROSSINGS = [
    (key, kind) for key in APART for kind in REQUESTS if key != "declared-bfloat" or kind in ("txt2img", "img2img")
]


def apart(host: Host, key: str) -> None:
    """The VAE as loaded, and then weights and declaration brought apart."""
    fresh_vae(host)
    operation, arguments = APART[key][1]
    host.probe(operation, **arguments)


@pytest.mark.parametrize("key", [pytest.param(key, id=f"P06-F-{key}") for key in MIXED])
def test_mixed_vae(forge: Keeper, key: str) -> None:
    host = forge()
    title, damage, endpoint, body = MIXED[key]

    def provoke() -> None:
        fresh_vae(host)
        host.probe.damage(damage)

    row = Row(f"P06-F-{key}", title, endpoint, body, comparable=key in COMPARABLE, healthy="agree")
    assert_cured(host, row, {"LG101", "LG102", "LG103"}, provoke)


@pytest.mark.parametrize(("key", "kind"), CROSSINGS, ids=[f"P12-F-{key}-{kind}" for key, kind in CROSSINGS])
def test_apart(forge: Keeper, key: str, kind: str) -> None:
    host = forge()
    row = Row(f"P12-F-{key}-{kind}", f"{APART[key][0]}: {kind}", *REQUESTS[kind], healthy="agree")
    result = assert_cured(host, row, {"LG101", "LG102"}, lambda: apart(host, key))
    assert ("LG102" in result.codes) == (kind != "txt2img"), "every boundary that was crossed is named"
    believed = "float32" if key == "weights-half" else APART[key][1][1]["dtype"]
    assert host.probe("declared") == f"torch.{believed}", "put back after each call"
    if kind == "tiled":
        host.generate("txt2img", {**BASE, **NOT_TILED}, OFF)


@pytest.mark.parametrize("row_id", ["P12-F-warn"])
def test_warn(forge: Keeper, row_id: str) -> None:
    """With Warn the request fails as it would, and the line says why."""
    host = forge()
    apart(host, "declared-half")
    mark = host.mark()
    assert host.generate("txt2img", BASE, POLICY_WARN).pictures == []
    said = host.said(mark)
    assert len(said) == 1 and "LG101" in said[0] and "policy Warn" in said[0] and "vae_dtype, float16" in said[0], said
    assert host.probe.marks() == []


@pytest.mark.parametrize("row_id", ["Z18-F-manual-cast"])
def test_manual_cast(forge: Keeper, row_id: str) -> None:
    """Layers that fit their weights to what they are given are healthy with unequal dtypes."""
    host = forge()

    def prepare() -> None:
        apart(host, "weights-half")
        host.probe("manual_cast")

    assert_silent(host, row_id, list(REQUESTS.values())[:2], prepare)


@pytest.mark.parametrize("row_id", ["P12-F-as-forge-itself"])
def test_as_forge_itself(forge: Keeper, row_id: str) -> None:
    """A VAE that was converted to half comes out as from a Forge that was told to have it in half. Not so in img2img:
    told so, Forge rounds the picture to half as well, ahead of the VAE (sd_samplers_common.py:108, devices.dtype_vae).
    """
    calls = [REQUESTS["txt2img"]]
    told = forge(flags=("--vae-in-fp16",))
    result = TABLE.add(told, Result(row_id, "Weights converted to half, against Forge's own --vae-in-fp16"))
    fresh(told)
    theirs = [told.generate(endpoint, body, OFF).pictures for endpoint, body in calls]
    result.reference = digest([picture for pictures in theirs for picture in pictures])
    host = forge()
    apart(host, "weights-half")
    without = [host.generate(endpoint, body, OFF).status for endpoint, body in calls]
    result.without = f"HTTP {', '.join(map(str, without))}"
    ours = [host.generate(endpoint, body, ON).pictures for endpoint, body in calls]
    result.with_ = digest([picture for pictures in ours for picture in pictures])
    assert without == [500]
    assert all(one and same(one, other) for one, other in zip(ours, theirs))
    result.passed = True

"""Rows P06 to P08 on a running SD.Next: each fails without LibGuard and is clean with it, in the same run.

In the order of the hosts that they start.
"""

from __future__ import annotations

from typing import Any

import pytest
from harness.keeper import Host, Keeper
from harness.proof import BASE, INIT, TABLE, Result, Row, assert_cured, digest, fresh
from sdnext_rows import DETAILER, ENCODING, NO_DETAILER, SD3, SD15, SDXL_FIX, control, detecting

#: Part of the id -> checkpoint, and what its float32 VAE is.
FLOAT_VAE = {
    "sd15": (SD15, "Full precision (--no-half-vae)"),
    "sdxl": (SDXL_FIX, "SDXL, fp16-fix VAE in full precision"),
    "sd3": (SD3, "SD3, full precision (--no-half-vae)"),
}

#: Part of the id -> title, damage, request.
MIXED: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "decoder": ("The VAE's decoder was converted to half, the rest was not", "half_decoder", "txt2img", BASE),
    "data": ("An extension assigned half weights through .data", "half_data", "img2img", {**BASE, **INIT}),
    "assign": ("A half VAE was loaded with load_state_dict(assign=True)", "half_state", "img2img", {**BASE, **INIT}),
    "bias": ("One convolution has a half weight and a float bias", "half_weight", "txt2img", BASE),
    "block": ("One block of the VAE is bfloat16", "bfloat_block", "txt2img", BASE),
}
#: Where the VAE is of one dtype, a caller that minds it gives the reference; a mixed one has no healthy picture.
COMPARABLE = ("data", "assign")


def float_vae(dtype: str) -> list[Any]:
    """The parameters of P07 and P08 for one dtype of the model."""
    return [
        *(
            pytest.param(dtype, model, kind, id=f"P07-S-{model}-{dtype.lower()}-{kind}")
            for model in FLOAT_VAE
            for kind in ENCODING
        ),
        *(pytest.param(dtype, model, "detailer", id=f"P08-S-{model}-{dtype.lower()}") for model in ("sd15", "sdxl")),
        pytest.param(dtype, "sd15", "control", id=f"P07-S-sd15-{dtype.lower()}-control"),
    ]


@pytest.mark.parametrize(("dtype", "model", "kind"), [*float_vae("FP16"), *float_vae("BF16")])
def test_float_vae(sdnext: Keeper, request: pytest.FixtureRequest, dtype: str, model: str, kind: str) -> None:
    host = sdnext(cuda_dtype=dtype, no_half_vae=True)
    checkpoint, title = FLOAT_VAE[model]
    host.options(sd_model_checkpoint=checkpoint)
    row_id = request.node.callspec.id
    if kind == "control":
        assert_control_cured(host, row_id, f"{title}, {dtype} model: Control tab, img2img")
        return
    if kind == "detailer":
        detecting(host)
        row = Row(row_id, f"{title}, {dtype} model: Detailer", "txt2img", DETAILER, silently=NO_DETAILER)
    else:
        row = Row(row_id, f"{title}, {dtype} model: {kind}", *ENCODING[kind])
    assert_cured(host, row, {"LG102"})


@pytest.mark.parametrize("row_id", ["P08-S-sd15-fp16-encoder"])
def test_float_encoder(sdnext: Keeper, row_id: str) -> None:
    host = detecting(sdnext(cuda_dtype="FP16"))
    title = "Only the VAE's encoding half is float32, FP16 model: Detailer"
    row = Row(row_id, title, "txt2img", DETAILER, damage="float_encoder", silently=NO_DETAILER)
    assert_cured(host, row, {"LG102", "LG103"})


@pytest.mark.parametrize("key", [pytest.param(key, id=f"P06-S-{key}") for key in MIXED])
def test_mixed_vae(sdnext: Keeper, key: str) -> None:
    host = sdnext()
    title, damage, endpoint, body = MIXED[key]
    row = Row(f"P06-S-{key}", title, endpoint, body, damage=damage, comparable=key in COMPARABLE)
    assert_cured(host, row, {"LG102", "LG103"})


def assert_control_cured(host: Host, row_id: str, title: str) -> None:
    """The Control tab runs no Script of an extension, so LibGuard takes the user's defaults from Settings there."""
    result = TABLE.add(host, Result(row_id, title))
    fresh(host)
    host.options(lib_guard_enabled=False)
    try:
        mark = host.mark()
        without = control(host)
        assert not without.pictures and "should be the same" in host.output()[mark:]
        result.without = "no picture, the error swallowed"
        host.probe.align(True)
        result.reference = digest(control(host).pictures)
        host.probe.align(False)
    finally:
        host.options(lib_guard_enabled=True)
    fresh(host)
    mark, number = host.mark(), len(host.probe.ledger())
    result.with_ = digest(control(host).pictures)
    generations = host.probe.ledger()[number:]
    result.codes = " ".join(entry["code"] for entry in generations[-1]["entries"])
    assert result.with_ == result.reference != "none"
    assert len(generations) == 1 and generations[0]["tab"] == "control" and generations[0]["outcome"] == "finished"
    assert result.codes == "LG102" and any("LG102" in line for line in host.said(mark))
    assert host.probe.marks() == []
    result.passed = True

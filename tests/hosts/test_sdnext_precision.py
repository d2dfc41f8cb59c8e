"""Rows P06 to P16 on a running SD.Next: each fails without LibGuard and is clean with it, in the same run.

In the order of the hosts that they start.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from harness.keeper import Host, Keeper
from harness.proof import BASE, INIT, TABLE, Result, Row, assert_cured, digest, fresh
from sdnext_rows import CONTROLNET, DETAILER, ENCODING, NO_DETAILER, SD3, SD15, SDXL_FIX, control, detecting, options

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
        assert_control_cured(host, row_id, f"{title}, {dtype} model: Control tab, img2img", "LG102")
        return
    if kind == "detailer":
        detecting(host)
        row = Row(row_id, f"{title}, {dtype} model: Detailer", "txt2img", DETAILER, silently=NO_DETAILER)
    else:
        row = Row(row_id, f"{title}, {dtype} model: {kind}", *ENCODING[kind])
    assert_cured(host, row, {"LG102"})


@pytest.mark.parametrize("encoder", ["text_encoder", "text_encoder_2"])
@pytest.mark.parametrize(
    ("dtype", "other"),
    [pytest.param("BF16", "float16", id="P10-S-half"), pytest.param("FP16", "bfloat16", id="P10-S-bfloat16")],
)
def test_text_projection(sdnext: Keeper, request: pytest.FixtureRequest, dtype: str, other: str, encoder: str) -> None:
    """The loader of diffusers #11117 leaves it so; SD.Next's own loads all in one precision, an extension may not."""
    host = sdnext(cuda_dtype=dtype)
    host.options(sd_model_checkpoint=SD3)

    def provoke() -> None:
        fresh(host)
        host.probe("convert", component=encoder, path="text_projection", dtype=other)

    mark = host.mark()
    title = f"SD3, the {encoder}'s text_projection in {other} in a {dtype} model"
    row = Row(request.node.callspec.id, title, "txt2img", BASE, comparable=False)
    assert_cured(host, row, {"LG111"}, provoke)
    assert "not enough values to unpack" in host.output()[mark:]


@pytest.mark.parametrize("row_id", ["P11-S"])
def test_mixed_unet(sdnext: Keeper, row_id: str) -> None:
    host = sdnext(cuda_dtype="FP16")
    host.options(sd_model_checkpoint=SD15)

    def provoke() -> None:
        fresh(host)
        host.probe("convert", component="unet", path="mid_block", dtype="bfloat16")

    row = Row(row_id, "The UNet's middle block is bfloat16, FP16 model", "txt2img", BASE, comparable=False)
    assert_cured(host, row, {"LG111"}, provoke)


@pytest.mark.parametrize("row_id", ["P16-S"])
def test_quantized_vae(sdnext: Keeper, row_id: str) -> None:
    """SD.Next's upcast of a half VAE (processing_vae.py:107) reaches what is not quantized; the layers that are go on
    unpacking to half. Nothing may be cast to what they are stored in."""
    host = sdnext(cuda_dtype="FP16", sdnq_dequantize_compile=False, sdnq_quantize_conv_layers=True)
    host.options(sd_model_checkpoint=SD15)
    with options(host, {"sdnq_quantize_weights": ["VAE"]}, {"sdnq_quantize_weights": []}):
        title = "VAE quantized by SDNQ, FP16 model, VAE upcasting default"
        row = Row(row_id, title, "txt2img", BASE, comparable=False, error="expected scalar type Float but found Half")
        assert_cured(host, row, {"LG104"})


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


@pytest.mark.parametrize("row_id", ["P13-S"])
def test_float_controlnet(sdnext: Keeper, row_id: str) -> None:
    """Control units take the precision of the host's start (ui_control_helpers.py:37), and keep their ControlNets."""
    host = sdnext()
    title = "ControlNet in float32, the model was loaded again in FP16"

    def provoke() -> None:
        load(host, "FP16")

    load(host, "FP32")
    assert control(host, [CONTROLNET]).pictures
    try:
        assert_control_cured(host, row_id, title, "LG112", models=[CONTROLNET], prepare=provoke, comparable=False)
    finally:
        load(host, "FP32")


def load(host: Host, dtype: str) -> None:
    """Load the checkpoint in another precision, as a program does through the API (api/endpoints.py:270)."""
    answer = host.post(f"/sdapi/v1/checkpoint?sd_model_checkpoint={SD15}&dtype={dtype}&force=true")
    assert answer.json == {"ok": True}, answer.text


def assert_control_cured(
    host: Host,
    row_id: str,
    title: str,
    code: str,
    *,
    models: Sequence[str] = (),
    prepare: Callable[[], None] | None = None,
    comparable: bool = True,
) -> None:
    """The Control tab runs no Script of an extension, so LibGuard takes the user's defaults from Settings there."""
    prepare = prepare or (lambda: fresh(host))
    result = TABLE.add(host, Result(row_id, title))
    prepare()
    host.options(lib_guard_enabled=False)
    try:
        mark = host.mark()
        without = control(host, models)
        printed = re.search("(should be the same|must have the same dtype).*", host.output()[mark:])
        assert not without.pictures and printed
        result.without = "no picture, the error swallowed"
        if comparable:
            host.probe.align(True)
            result.reference = digest(control(host, models).pictures)
            host.probe.align(False)
    finally:
        host.options(lib_guard_enabled=True)
    prepare()
    mark, number = host.mark(), host.probe.generation()
    pictures = control(host, models).pictures
    result.with_ = digest(pictures)
    generations = host.probe.since(number)
    result.codes = " ".join(entry["code"] for entry in generations[-1]["entries"])
    assert pictures and all(picture.std() > 1 for picture in pictures)
    assert result.with_ == result.reference or not comparable
    assert len(generations) == 1 and generations[0]["tab"] == "control" and generations[0]["outcome"] == "finished"
    assert result.codes == code and any(code in line for line in host.said(mark))
    assert host.probe.marks() == []
    result.passed = True

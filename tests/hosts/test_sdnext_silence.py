"""Healthy generations on a running SD.Next: with LibGuard they are bit-identical, and nothing is said.

Its default way of applying a LoRA adds to the weights and subtracts again, so that every request with one leaves other
weights behind: each of the two passes of a row begins with weights fresh from the disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from harness.keeper import Host, Keeper
from harness.previews import previews
from harness.proof import BASE, INIT, MASK, OFF, ON, POLICY_OFF, TABLE, Result, assert_silent, digest, fresh, same
from models.sdnext import HUB
from sdnext_rows import (
    CONTROLNET,
    DETAILER,
    HIRES_LATENT,
    HIRES_PIXEL,
    IP_ADAPTER,
    REFINED,
    REFINER,
    SD3,
    SD15,
    SDXL,
    SDXL_FIX,
    control,
    detecting,
    options,
    select,
)

Calls = list[tuple[str, dict[str, Any]]]


def prompt(text: str) -> dict[str, Any]:
    """The basic request with another prompt."""
    return {**BASE, "prompt": text}


ROWS: dict[str, Calls] = {
    "Z01-S": [("txt2img", BASE), ("txt2img", {**BASE, "cfg_scale": 1.0, "steps": 3})],
    "Z02-S-latent": [("txt2img", HIRES_LATENT)],
    "Z02-S-pixel": [("txt2img", HIRES_PIXEL)],
    "Z03-S": [("img2img", {**BASE, **INIT})],
    "Z04-S": [("img2img", {**BASE, **MASK})],
    "Z05-S": [("txt2img", {**BASE, "batch_size": 2, "n_iter": 2})],
    "Z03-S-detailer": [("txt2img", DETAILER)],
}

#: More of them are in test_sdnext_lora.py; a change between two is only silent where they are not fused.
LORAS: dict[str, Calls] = {
    "Z06-S-one": [("txt2img", prompt("a red cat <lora:tiny-crimson:0.8>"))],
}

#: Id -> checkpoint; tiny-sdxl's VAE is converted to float32 by the host itself at decode, which is healthy.
FAMILIES = {"sdxl": SDXL, "sdxl-fix": SDXL_FIX, "sd3": SD3}

#: Id -> settings that store weights in another kind of dtype, and checkpoint. The first is SD.Next's own quantization;
#: tiny layers are left out of it unless convolutions are in.
QUANTIZED: dict[str, tuple[dict[str, Any], str]] = {
    "int8": ({"sdnq_quantize_weights": ["Model", "TE", "VAE"], "sdnq_quantize_weights_mode": "int8"}, SD15),
    "uint4": ({"sdnq_quantize_weights": ["Model", "TE", "VAE"], "sdnq_quantize_weights_mode": "uint4"}, SD15),
    "float8": ({"sdnq_quantize_weights": ["Model"], "sdnq_quantize_weights_mode": "float8_e4m3fn"}, SD15),
    "layerwise": ({"layerwise_quantization": ["Model", "TE"]}, SD15),
    "layerwise-sd3": ({"layerwise_quantization": ["Model", "TE"]}, SD3),
}
#: Set from the start, since "Dequantize using torch.compile" is read then (sdnq/common.py:339).
UNCOMPILED: dict[str, Any] = {"sdnq_dequantize_compile": False, "sdnq_quantize_conv_layers": True}
UNQUANTIZED: dict[str, Any] = {"sdnq_quantize_weights": [], "layerwise_quantization": []}

# The host in FP32.


@pytest.mark.parametrize("row", ROWS)
def test_row(sdnext: Keeper, row: str) -> None:
    host = detecting(select(sdnext(), SD15))
    assert_silent(host, row, ROWS[row])


@pytest.mark.parametrize("row_id", ["Z01-S-control"])
def test_control_tab(sdnext: Keeper, row_id: str) -> None:
    """The Control tab runs no Script; LibGuard takes the defaults from Settings."""
    assert_control_silent(select(sdnext(), SD15), row_id, "Control tab", ())


@pytest.mark.parametrize("models", [(CONTROLNET,), (CONTROLNET, CONTROLNET)], ids=["Z14-S", "Z14-S-two"])
def test_controlnet(sdnext: Keeper, request: pytest.FixtureRequest, models: tuple[str, ...]) -> None:
    host = select(sdnext(), SD15)
    host.options(lib_guard_enabled=False)
    plain = digest(control(host).pictures)
    title = "ControlNet in the Control tab" + (", two units" if len(models) > 1 else "")
    assert assert_control_silent(host, request.node.callspec.id, title, models).with_ != plain, "it did nothing"


def assert_control_silent(host: Host, row_id: str, title: str, models: tuple[str, ...]) -> Result:
    result = TABLE.add(host, Result(row_id, title))
    host.options(lib_guard_enabled=False)
    result.without = result.reference = digest(control(host, models).pictures)
    host.options(lib_guard_enabled=True)
    mark, number = host.mark(), host.probe.generation()
    result.with_ = digest(control(host, models).pictures)
    generations = host.probe.since(number)
    assert result.with_ == result.without != "none"
    assert [(one["tab"], one["outcome"], one["entries"]) for one in generations] == [("control", "finished", [])]
    assert host.said(mark) == [] and host.probe.marks() == []
    result.passed = True
    return result


@pytest.mark.parametrize("row", LORAS)
def test_lora(sdnext: Keeper, row: str) -> None:
    host = select(sdnext(), SD15)
    plain = digest(host.generate("txt2img", prompt("a red cat"), OFF).pictures)
    result = assert_silent(host, row, LORAS[row], prepare=lambda: fresh(host))
    assert result.with_ != plain, "the LoRA did nothing"


@pytest.mark.parametrize("row", ["Z08-S"])
def test_textual_inversion(sdnext: Keeper, row: str) -> None:
    host = select(sdnext(), SD15)
    assert_silent(host, row, [("txt2img", prompt("a red cat, tiny-style"))], prepare=lambda: fresh(host))
    assert "tiny-style" in host.get("/sdapi/v1/embeddings").json["loaded"]


@pytest.mark.parametrize("row", ["Z09-S"])
def test_refiner(sdnext: Keeper, row: str) -> None:
    """It is loaded in the middle of the first generation that asks for it (modeldata.py:202)."""
    host = select(sdnext(), SDXL)
    calls: Calls = [("txt2img", REFINED), ("txt2img", BASE), ("txt2img", REFINED)]
    unrefined = digest([picture for _, body in calls for picture in host.generate("txt2img", body, OFF).pictures])
    with options(host, {"sd_model_refiner": REFINER}, {"sd_model_refiner": "None"}):
        result = assert_silent(host, row, calls, prepare=lambda: fresh(host))
    assert result.with_ != unrefined, "the refiner did nothing"


@pytest.mark.parametrize("row", ["Z10-S"])
def test_tiled_vae(sdnext: Keeper, row: str) -> None:
    host = select(sdnext(), SD15)
    large = {"width": 128, "height": 128}
    calls: Calls = [("txt2img", {**BASE, **large}), ("img2img", {**BASE, **INIT, **large})]
    with options(host, {"diffusers_vae_tiling": True, "diffusers_vae_tile_size": 64}, {"diffusers_vae_tiling": False}):
        assert_silent(host, row, calls)


@pytest.mark.parametrize("method", ["Simple", "TAESD", "Full"], ids=lambda method: f"Z11-S-preview-{method.lower()}")
def test_live_previews(sdnext: Keeper, method: str) -> None:
    host = select(sdnext(), SD15)
    calls: Calls = [("txt2img", {**BASE, "steps": 12})]
    with options(host, {"show_progress_type": method}, {"show_progress_type": "TAESD"}), previews(host) as seen:
        assert_silent(host, f"Z11-S-preview-{method.lower()}", calls)
    assert seen, "no preview was made, so this shows nothing"


@pytest.mark.parametrize("row", ["Z11-S-taesd"])
def test_tiny_vae(sdnext: Keeper, row: str) -> None:
    host = select(sdnext(), SD15)
    full = digest(host.generate("txt2img", BASE, OFF).pictures)
    result = assert_silent(host, row, [("txt2img", {**BASE, "vae_type": "Tiny"})])
    assert result.with_ != full, "TAESD was not used"


@pytest.mark.parametrize("what", ["interrupt", "skip", "raise"], ids=lambda what: f"Z12-S-{what}")
def test_interrupt(sdnext: Keeper, what: str) -> None:
    """In the middle of sampling, and then an ordinary request."""
    host = select(sdnext(), SD15)
    long = {**BASE, "steps": 6, "n_iter": 2}
    assert_silent(
        host, f"Z12-S-{what}", [("txt2img", long), ("txt2img", BASE)], prepare=lambda: host.probe.at_step(2, what)
    )
    host.probe.at_step(0, "nothing")


@pytest.mark.parametrize("row", ["Z13-S"])
def test_checkpoint_switch(sdnext: Keeper, row: str) -> None:
    host = select(sdnext(), SD15)
    other = {**BASE, "override_settings": {"sd_model_checkpoint": SDXL}}
    result = assert_silent(host, row, [("txt2img", BASE), ("txt2img", other), ("txt2img", BASE)])
    assert result.with_ != digest(host.generate("txt2img", BASE, OFF).pictures * 3), "the checkpoint was not switched"


@pytest.mark.parametrize("row", ["Z16-S"])
def test_restart(sdnext: Keeper, row: str) -> None:
    """Restart server, twice: SD.Next's Reload UI."""
    host = select(sdnext(), SD15)
    before = host.generate("txt2img", BASE, ON).pictures
    for _ in range(2):
        mark = host.mark()
        host.probe("reload_ui")
        host.wait_for_restart(mark)
        started = host.said(mark)
        assert len(started) == 1 and "guards: encoder, precision, finite, lora" in started[0], started
        assert same(host.generate("txt2img", BASE, ON).pictures, before)
        assert_silent(host, row, [("txt2img", BASE), ("img2img", {**BASE, **INIT})])


@pytest.mark.parametrize("mode", ["balanced", "model", "group", "sequential"], ids=lambda mode: f"Z17-S-{mode}")
def test_offload(sdnext: Keeper, mode: str) -> None:
    host = select(sdnext(), SD15)
    calls: Calls = [("txt2img", BASE), ("img2img", {**BASE, **INIT}), ("txt2img", HIRES_PIXEL)]
    with options(host, {"diffusers_offload_mode": mode}, {"diffusers_offload_mode": "none"}):
        fresh(host)
        alone = [host.generate(endpoint, body, OFF) for endpoint, body in calls]
        broken = next((answer for answer in alone if not answer.pictures), None)
        if broken is not None:
            pytest.skip(f"{mode} offload does not work in SD.Next on a CPU, without LibGuard: {broken.text[:160]}")
        assert_silent(host, f"Z17-S-{mode}", calls, prepare=lambda: fresh(host))


@pytest.mark.parametrize("row", ["Z19-S"])
def test_policy_off(sdnext: Keeper, row: str) -> None:
    """No hook anywhere on the model in the middle of a generation; with the policy on there are some to be found."""
    host = select(sdnext(), SD15)
    result = TABLE.add(host, Result(row, "txt2img, the precision guard off"))
    found: dict[str, list[list[str]]] = {}
    shown = {}
    for name, scripts in {"off": POLICY_OFF, "disabled": OFF, "on": ON}.items():
        host.probe.watch_hooks(True)
        shown[name] = digest(host.generate("txt2img", BASE, scripts).pictures)
        found[name] = host.probe.watch_hooks(False)
    result.without, result.with_ = shown["disabled"], shown["off"]
    assert found["off"] and not any(found["off"]), found["off"]
    assert found["disabled"] and not any(found["disabled"])
    assert found["on"] and all(found["on"])
    assert len(set(shown.values())) == 1
    result.passed = True


@pytest.mark.parametrize("how", [pytest.param(how, id=f"Z18-S-{how}") for how in QUANTIZED])
def test_quantized(sdnext: Keeper, how: str) -> None:
    values, checkpoint = QUANTIZED[how]
    host = select(sdnext(**UNCOMPILED), checkpoint)
    plain = digest(host.generate("txt2img", BASE, OFF).pictures)
    with options(host, values, UNQUANTIZED):
        result = assert_silent(host, f"Z18-S-{how}", ROWS["Z01-S"] + ROWS["Z03-S"], prepare=lambda: fresh(host))
        assert set().union(*host.probe.dtypes().values()) & {"int8", "uint8", "float8_e4m3fn"}, "nothing is quantized"
    assert result.with_ != plain


@pytest.mark.parametrize("row", ["Z18-S-compiled"])
def test_quantized_and_compiled(sdnext: Keeper, row: str) -> None:
    """Layers whose unpacking is compiled: a mode that is active while they are called would have it compiled anew."""
    values: dict[str, Any] = {**QUANTIZED["int8"][0], "sdnq_quantize_conv_layers": True}
    host = select(sdnext(cuda_dtype="BF16", sdnq_dequantize_compile=True, **values), SD15)
    assert_silent(host, row, ROWS["Z01-S"] + ROWS["Z03-S"], prepare=lambda: fresh(host))


# The hosts in half.


# The dtype below the row, so that it changes last: each is a start of the host.
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("dtype", ["BF16", "FP16"])
def test_row_in_half(sdnext: Keeper, row: str, dtype: str) -> None:
    host = detecting(select(sdnext(cuda_dtype=dtype), SD15))
    assert_silent(host, f"{row}-{dtype.lower()}", ROWS[row])


@pytest.mark.parametrize("row", ["Z01-S", "Z02-S-pixel", "Z03-S"])
@pytest.mark.parametrize("family", FAMILIES)
def test_row_on_other_families(sdnext: Keeper, row: str, family: str) -> None:
    host = select(sdnext(cuda_dtype="FP16"), FAMILIES[family])
    assert_silent(host, f"{row}-fp16-{family}", ROWS[row], prepare=lambda: fresh(host))


@pytest.fixture
def adapters(sdnext: Keeper) -> Iterator[Keeper]:
    """SD.Next that finds IP-Adapters as if it had fetched them: diffusers looks for them where the Hub's client did
    when it was imported, which is before SD.Next tells it another place (models_hf.py:19)."""
    sdnext.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_CACHE", str(HUB))
        yield sdnext
    sdnext.close()


@pytest.mark.parametrize("dtype", ["FP32", "FP16"], ids=["Z15-S", "Z15-S-fp16"])
def test_ip_adapter(adapters: Keeper, request: pytest.FixtureRequest, dtype: str) -> None:
    """Its image encoder comes in the middle of the first generation that asks for it, and so does the projection."""
    host = select(adapters(cuda_dtype=dtype), SD15)
    plain: Calls = [("txt2img", BASE), ("img2img", {**BASE, **INIT}), ("txt2img", HIRES_PIXEL)]
    unadapted = digest([picture for path, body in plain for picture in host.generate(path, body, OFF).pictures])
    calls: Calls = [(endpoint, {**body, **IP_ADAPTER}) for endpoint, body in plain]
    result = assert_silent(host, request.node.callspec.id, calls, prepare=lambda: fresh(host))
    assert result.with_ != unadapted, "the adapter did nothing"

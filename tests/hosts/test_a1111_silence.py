"""Silence on AUTOMATIC1111: healthy generations are bit-identical with LibGuard, and nothing is recorded or said."""

from __future__ import annotations

import re
from typing import Any

import pytest
from a1111_rows import FLAGS, GRID, LATENT_HIRES, PIXEL_HIRES, RED, calm, forget, loaded, prompter, reload_ui, start
from harness.keeper import Keeper
from harness.previews import previews
from harness.proof import BASE, INIT, MASK, OFF, ON, POLICY_OFF, assert_silent, same

NOISE = {"inpainting_fill": 2, "inpaint_full_res": True, "mask_blur": 0}
TWO = {**BASE, "prompt": "a red cat <lora:redlora:0.8> <lora:greenunet:-0.5>"}
BLUE = {**BASE, "prompt": "a red cat on a green chair <lora:bluelora:0.5>"}
OTHER = {"sd_model_checkpoint": "othersd1.safetensors"}

#: Row -> the requests it is made of.
ROWS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "Z01-A": [("txt2img", BASE), ("txt2img", {**BASE, "cfg_scale": 1.0, "sampler_name": "DDIM"})],
    "Z02-A-latent": [("txt2img", {**BASE, **LATENT_HIRES})],
    "Z02-A-pixel": [("txt2img", {**BASE, **PIXEL_HIRES})],
    "Z03-A": [("img2img", {**BASE, **INIT})],
    "Z04-A": [("img2img", {**BASE, **MASK}), ("img2img", {**BASE, **MASK, **NOISE})],
    "Z05-A": [("txt2img", {**BASE, "batch_size": 2, "n_iter": 2})],
    "Z05-A-xyz": [("txt2img", {**BASE, **GRID})],
    "Z06-A": [("txt2img", RED), ("txt2img", TWO)],
    "Z07-A": [("txt2img", body) for body in (RED, BASE, BLUE, TWO, BASE)],
    "Z13-A": [("txt2img", body) for body in (BASE, {**BASE, "override_settings": OTHER}, BASE)],
}


@pytest.mark.parametrize("row_id", ROWS)
@pytest.mark.parametrize("flags", FLAGS)
def test_row(a1111: Keeper, flags: str, row_id: str) -> None:
    host = start(a1111, flags)
    assert_silent(host, f"{row_id}-{flags}", ROWS[row_id], lambda: forget(host))


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("row_id", ["Z08-A"])
def test_textual_inversion(a1111: Keeper, flags: str, row_id: str) -> None:
    host = start(a1111, flags)
    assert "tinystyle" in host.get("/sdapi/v1/embeddings").json["loaded"]
    body = {**BASE, "prompt": "a red cat, tinystyle"}
    assert_silent(host, f"{row_id}-{flags}", [("txt2img", body), ("txt2img", {**body, **PIXEL_HIRES})])


@pytest.mark.parametrize("row_id", ["P14-A"])
def test_embedding_of_another_dtype(a1111: Keeper, row_id: str) -> None:
    """Float32 vectors in a half text encoder: the host brings them to the encoder's dtype itself (sd_hijack.py:363), so
    that here nothing fails, and nothing is to be said."""
    host = loaded(a1111(flags=("--precision", "half")))
    body = {**BASE, "prompt": "a red cat, tinystyle"}
    assert_silent(host, row_id, [("txt2img", body)], lambda: forget(host))


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("row_id", ["Z09-A"])
def test_refiner(a1111: Keeper, flags: str, row_id: str) -> None:
    """Another checkpoint takes over in the middle of sampling, and its VAE decodes."""
    host = start(a1111, flags)
    plain = {**BASE, "steps": 4}
    refined = {**plain, "refiner_checkpoint": "othersd1.safetensors", "refiner_switch_at": 0.5}
    alone = host.generate("txt2img", plain, OFF).pictures
    assert_silent(host, f"{row_id}-{flags}", [("txt2img", refined), ("txt2img", plain)], lambda: forget(host))
    assert not same(host.generate("txt2img", refined, ON).pictures, alone), "the refiner was not used"


@pytest.mark.parametrize("row_id", ["Z18-A"])
def test_float8_storage(a1111: Keeper, row_id: str) -> None:
    """Weights are kept in float8 and computed in what the layer is given (devices.py, manual_cast)."""
    host = start(a1111, "full", fp8_storage="Enable")
    assert any("float8" in dtype for dtype in host.probe.dtypes()["model"]), "nothing is stored in float8"
    assert_silent(host, row_id, [("txt2img", BASE), ("img2img", {**BASE, **INIT})], lambda: forget(host))


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("row_id", ["Z10-A-tiling"])
def test_seamless_tiling(a1111: Keeper, flags: str, row_id: str) -> None:
    """The host's own tiling, which changes how every convolution pads."""
    host = start(a1111, flags)
    assert_silent(host, f"{row_id}-{flags}", [("txt2img", {**BASE, "tiling": True})], lambda: forget(host))


@pytest.mark.parametrize("row_id", ["Z10-A"])
def test_tiled_vae(row_id: str) -> None:
    pytest.skip("AUTOMATIC1111 has no tiled VAE of its own; it comes with an extension")


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("row_id", ["Z11-A-taesd"])
def test_taesd(a1111: Keeper, flags: str, row_id: str) -> None:
    """A decoder and an encoder of their own. (As `override_settings` they would stay: processing.py:823 keeps only what
    is in the settings already.)"""
    host = start(a1111, flags)
    full = host.generate("txt2img", BASE, OFF).pictures
    host.options(sd_vae_decode_method="TAESD", sd_vae_encode_method="TAESD")
    try:
        calls = [("txt2img", BASE), ("img2img", {**BASE, **INIT})]
        assert_silent(host, f"{row_id}-{flags}", calls, lambda: forget(host))
        assert not same(host.generate("txt2img", BASE, OFF).pictures, full), "TAESD was not used"
    finally:
        host.options(sd_vae_decode_method="Full", sd_vae_encode_method="Full")


@pytest.mark.parametrize("kind", ["Full", "TAESD", "Approx cheap"])
@pytest.mark.parametrize("flags", ["mac", "full"])
@pytest.mark.parametrize("row_id", ["Z11-A-previews"])
def test_previews(a1111: Keeper, flags: str, kind: str, row_id: str) -> None:
    """Live previews, decoded in the thread that asks for them while the generation goes on."""
    host = start(a1111, flags)
    host.options(show_progress_type=kind, live_previews_enable=True, show_progress_every_n_steps=1)
    try:
        with previews(host) as seen:
            calls = [("txt2img", {**BASE, "steps": 10})]
            assert_silent(host, f"{row_id}-{kind.replace(' ', '-')}-{flags}", calls, lambda: forget(host))
        assert seen, "no preview was decoded, so they prove nothing"
    finally:
        host.options(show_progress_type="Approx NN", show_progress_every_n_steps=10)


@pytest.mark.parametrize("what", ["interrupt", "skip"])
@pytest.mark.parametrize("row_id", ["Z12-A"])
def test_stopped(a1111: Keeper, what: str, row_id: str) -> None:
    host = start(a1111, "mac")

    def prepare() -> None:
        forget(host)
        host.probe.at_step(1, what)

    try:
        assert_silent(host, f"{row_id}-{what}", [("txt2img", {**BASE, "steps": 4})], prepare)
    finally:
        host.probe.at_step(0, "nothing")


@pytest.mark.parametrize("row_id", ["Z13-A-unloaded"])
def test_unloaded_and_back(a1111: Keeper, row_id: str) -> None:
    """Unload and reload over the API, with a request in between that makes the host load by itself."""
    host = start(a1111, "mac")

    def prepare() -> None:
        for operation in ("unload", "reload", "unload"):
            assert host.post(f"/sdapi/v1/{operation}-checkpoint").status == 200
        assert host.post("/sdapi/v1/reload-checkpoint").status == 200
        forget(host)

    assert_silent(host, row_id, [("txt2img", BASE), ("img2img", {**BASE, **INIT})], prepare)


@pytest.mark.parametrize("row_id", ["Z16-A"])
def test_reload_ui_twice(a1111: Keeper, row_id: str) -> None:
    """New modules, the same model, and no word from the host that it is there; nothing of the old code stays on it."""
    host = start(a1111, "mac")
    for _ in range(2):
        host.generate("txt2img", RED, ON)
        reload_ui(host)
        assert host.probe.marks() == [] and host.probe.ledger() == [], "the code before is still there"
        assert_silent(host, row_id, [("txt2img", BASE), ("txt2img", RED)], lambda: forget(host))
    scripts = [entry["name"] for entry in host.get("/sdapi/v1/script-info").json]
    assert scripts.count("libguard") == 2, "once in txt2img and once in img2img"


@pytest.mark.parametrize("row_id", ["Z16-A-middle"])
def test_reload_ui_after_a_failure(a1111: Keeper, row_id: str) -> None:
    """A generation that failed, and then Reload UI: the watch that it left open goes with the old code."""
    host = start(a1111, "mac")
    host.probe.at_step(1, "raise")
    assert host.generate("txt2img", BASE, ON).status == 500
    host.probe.at_step(0, "nothing")
    reload_ui(host)
    assert host.probe.marks() == []
    assert_silent(host, row_id, [("txt2img", BASE)], lambda: forget(host))


@pytest.mark.parametrize("memory", ["--medvram", "--lowvram"])
@pytest.mark.parametrize("row_id", ["Z17-A"])
def test_little_memory(a1111: Keeper, memory: str, row_id: str) -> None:
    """These put methods of their own on the VAE, which must be there afterwards, or the VAE would never be loaded."""
    host = start(a1111, "mac", more=(memory,))
    before = host.probe("own_methods")
    assert sorted(before) == ["decode", "encode"], "the flag does nothing here"
    calls = [("txt2img", {**BASE, **PIXEL_HIRES}), ("img2img", {**BASE, **INIT})]
    assert_silent(host, f"{row_id}-{memory[2:]}", calls, lambda: forget(host))
    assert host.probe("own_methods") == before


@pytest.mark.parametrize("scripts", [OFF, POLICY_OFF], ids=["switched-off", "policy-off"])
@pytest.mark.parametrize("row_id", ["Z19-A"])
def test_off_attaches_nothing(a1111: Keeper, scripts: dict[str, Any], row_id: str) -> None:
    """No hook anywhere on the model or the host in the middle of a generation; with the guard on there are some."""
    host = start(a1111, "mac")
    calm(host)
    host.probe.watch_hooks(True)
    try:
        assert host.generate("txt2img", {**RED, **PIXEL_HIRES}, ON).pictures
        assert any("post_quant_conv" in place for noted in host.probe.watch_hooks(True) for place in noted)
        assert host.generate("txt2img", {**RED, **PIXEL_HIRES}, scripts).pictures
        noted = host.probe.watch_hooks(False)
    finally:
        host.probe.watch_hooks(False)
    assert len(noted) > 2 and noted == [[]] * len(noted)


@pytest.mark.parametrize("row_id", ["A-order"])
def test_after_the_extensions_that_patch_layers(a1111: Keeper, row_id: str) -> None:
    host = start(a1111, "mac", prompter())
    for method in ("process", "postprocess"):
        order = [
            title for title in host.probe("script_order", method=method) if title in ("LibGuard", "Regional Prompter")
        ]
        assert order in (["Regional Prompter", "LibGuard"], ["LibGuard"]), order
    assert "Regional Prompter" in host.probe("script_order", method="process")


@pytest.mark.parametrize("row_id", ["A-api"])
def test_the_api_fills_in_what_is_missing(a1111: Keeper, row_id: str) -> None:
    """`ui()` is called once more a tab for the API's defaults; a request without arguments is guarded with these."""
    host = start(a1111, "mac")
    found = [entry for entry in host.get("/sdapi/v1/script-info").json if entry["name"] == "libguard"]
    assert [[argument["value"] for argument in entry["args"]] for entry in found] == [
        [True, "Fix", "Auto", "Fix", "Fix", "Fix"]
    ] * 2
    number = host.probe.generation()
    for arguments in ([], [True], [True, "fix"]):
        assert host.generate("txt2img", BASE, {"LibGuard": {"args": arguments}}).pictures
    assert host.post("/sdapi/v1/txt2img", BASE).pictures
    generations = host.probe.since(number)
    assert [generation["entries"] for generation in generations] == [[]] * 4
    assert re.search(r"\[LibGuard\] \S+ on AUTOMATIC1111 1\.\d+", host.output())

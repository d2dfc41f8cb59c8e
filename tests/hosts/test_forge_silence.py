"""Healthy generations on a running Forge: with LibGuard they are bit-identical, and nothing is said.

What Forge encodes in img2img it draws before it sets the request's seed, so both passes begin with the same noise.
Conditioning that was made under a LoRA outlives it in Forge's prompt cache, and its network stays merged until the next
request, so each of the two passes of a LoRA row begins with a freshly loaded model and empty caches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from forge_rows import HIRES_LATENT, HIRES_PIXEL, NOT_TILED, TILED, fresh, seeded
from harness.keeper import Keeper
from harness.previews import previews
from harness.proof import BASE, INIT, MASK, OFF, ON, POLICY_OFF, TABLE, Result, assert_silent, digest, same
from safetensors.numpy import save_file

Calls = list[tuple[str, dict[str, Any]]]


def prompt(text: str) -> dict[str, Any]:
    """The basic request with another prompt."""
    return {**BASE, "prompt": text}


NOISE = {"inpainting_fill": 2, "inpaint_full_res": True, "mask_blur": 0}
OTHER = {"sd_model_checkpoint": "othersd15.safetensors"}

ROWS: dict[str, Calls] = {
    "Z01-F": [("txt2img", BASE), ("txt2img", {**BASE, "cfg_scale": 1.0, "sampler_name": "DDIM"})],
    "Z02-F-latent": [("txt2img", HIRES_LATENT)],
    "Z02-F-pixel": [("txt2img", HIRES_PIXEL)],
    "Z03-F": [("img2img", {**BASE, **INIT})],
    "Z04-F": [("img2img", {**BASE, **MASK}), ("img2img", {**BASE, **MASK, **NOISE})],
    "Z05-F": [("txt2img", {**BASE, "batch_size": 2, "n_iter": 2})],
}

LORAS: dict[str, Calls] = {
    "Z06-F-one": [("txt2img", prompt("a red cat <lora:redlora:0.8>"))],
    "Z06-F-two": [("txt2img", prompt("a red cat <lora:redlora:0.7> <lora:bluelora:-0.4>"))],
    "Z07-F": [
        ("txt2img", prompt(f"a red cat{lora}"))
        for lora in (" <lora:redlora:1>", " <lora:bluelora:0.5>", "", " <lora:redlora:1>")
    ],
}


@pytest.mark.parametrize("row", ROWS)
def test_row(forge: Keeper, row: str) -> None:
    host = forge()
    fresh(host)
    assert_silent(host, row, ROWS[row], lambda: seeded(host))


@pytest.mark.parametrize("row", ["Z08-F"])
def test_textual_inversion(forge: Keeper, row: str) -> None:
    host = forge()
    vectors = 0.02 * np.random.default_rng(15).standard_normal((2, 768)).astype(np.float32)
    (host.data / "embeddings").mkdir(exist_ok=True)
    save_file({"emb_params": vectors}, host.data / "embeddings" / "tinystyle.safetensors")
    fresh(host)
    calls: Calls = [("txt2img", prompt("a red cat, tinystyle"))]
    unknown = digest(host.generate("txt2img", prompt("a red cat, tinystyles"), OFF).pictures)
    assert assert_silent(host, row, calls, lambda: seeded(host)).reference != unknown, "the embedding was not used"


@pytest.mark.parametrize("row", ["Z09-F"])
def test_refiner(forge: Keeper, row: str) -> None:
    """Another checkpoint takes over in the middle of sampling, and its VAE decodes."""
    host = forge()
    fresh(host)
    plain = {**BASE, "steps": 4}
    refined = {**plain, "refiner_checkpoint": OTHER["sd_model_checkpoint"], "refiner_switch_at": 0.5}
    alone = digest(host.generate("txt2img", plain, OFF).pictures)
    result = assert_silent(host, row, [("txt2img", refined)], lambda: fresh(host))
    assert result.reference != alone, "the refiner was not used"


@pytest.mark.parametrize("row", ["Z14-F"])
def test_what_needs_full_size_models(row: str) -> None:
    pytest.skip("Forge takes ControlNets of the full size only: 700 MB")


@pytest.mark.parametrize("row", LORAS)
def test_lora(forge: Keeper, row: str) -> None:
    host = forge()
    fresh(host)
    plain = digest(host.generate("txt2img", prompt("a red cat"), OFF).pictures)
    result = assert_silent(host, row, LORAS[row], prepare=lambda: fresh(host))
    assert result.with_ != plain, "the LoRA did nothing"
    host.generate("txt2img", BASE, OFF)


@pytest.mark.parametrize("row", ["Z10-F"])
def test_tiled_vae(forge: Keeper, row: str) -> None:
    host = forge()
    fresh(host)
    calls: Calls = [("txt2img", {**BASE, **TILED}), ("img2img", {**BASE, **INIT, **TILED})]
    assert_silent(host, row, calls, lambda: seeded(host))
    assert host.probe("tiled_always"), "the pictures were not decoded in tiles"
    host.generate("txt2img", {**BASE, **NOT_TILED}, OFF)
    assert not host.probe("tiled_always")


@pytest.mark.parametrize("kind", ["Full", "Approx cheap"])
@pytest.mark.parametrize("row", ["Z11-F-previews"])
def test_previews(forge: Keeper, row: str, kind: str) -> None:
    """Live previews, asked for while the generation goes on. TAESD would be downloaded."""
    host = forge()
    fresh(host)
    host.options(show_progress_type=kind, live_previews_enable=True, show_progress_every_n_steps=1)
    try:
        with previews(host) as seen:
            assert_silent(host, f"{row}-{kind.replace(' ', '-')}", [("txt2img", {**BASE, "steps": 4})])
        assert seen, "no preview was decoded, so they prove nothing"
    finally:
        host.options(show_progress_type="Approx NN", show_progress_every_n_steps=10)


@pytest.mark.parametrize("what", ["interrupt", "skip"], ids=lambda what: f"Z12-F-{what}")
def test_interrupt(forge: Keeper, what: str) -> None:
    """In the middle of sampling, and then an ordinary request."""
    host = forge()
    fresh(host)
    long = {**BASE, "steps": 4, "n_iter": 2}
    assert_silent(
        host, f"Z12-F-{what}", [("txt2img", long), ("txt2img", BASE)], prepare=lambda: host.probe.at_step(2, what)
    )
    host.probe.at_step(0, "nothing")


@pytest.mark.parametrize("row", ["Z12-F-raise"])
def test_error(forge: Keeper, row: str) -> None:
    """An error of somebody else's: LibGuard is off the model when it has passed, and the next picture is as ever."""
    host = forge()
    fresh(host)
    result = TABLE.add(host, Result(row, "an error while sampling, then txt2img"))
    before = host.generate("txt2img", BASE, OFF).pictures
    mark = host.mark()
    host.probe.at_step(1, "raise")
    assert host.generate("txt2img", BASE, ON).status == 500
    host.probe.at_step(0, "nothing")
    assert host.probe.marks() == [] and host.probe.ledger()[-1]["outcome"] == "failed"
    after = host.generate("txt2img", BASE, ON).pictures
    result.without, result.with_ = digest(before), digest(after)
    assert same(before, after) and host.said(mark) == [] and host.probe.ledger()[-1]["outcome"] == "finished"
    result.passed = True


@pytest.mark.parametrize("row", ["Z13-F"])
def test_checkpoint_switch(forge: Keeper, row: str) -> None:
    host = forge()
    fresh(host)
    plain = digest(host.generate("txt2img", BASE, OFF).pictures * 3)
    other = {**BASE, "override_settings": OTHER}
    result = assert_silent(host, row, [("txt2img", BASE), ("txt2img", other), ("txt2img", BASE)])
    assert result.with_ != plain, "the checkpoint was not switched"


@pytest.mark.parametrize("row", ["Z19-F"])
def test_policy_off(forge: Keeper, row: str) -> None:
    """No hook anywhere on the model in the middle of a generation; with the policy on there are some to be found."""
    host = forge()
    fresh(host)
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
    assert any(place.startswith("wrapper") for place in found["on"][0]), "the VAE's wrapper was not watched"
    assert len(set(shown.values())) == 1
    result.passed = True


@pytest.mark.parametrize("row", ["Z16-F"])
def test_reload_ui(forge: Keeper, row: str) -> None:
    host = forge()
    fresh(host)
    before = host.generate("txt2img", BASE, ON).pictures
    for _ in range(2):
        mark = host.mark()
        host.probe("reload_ui")
        host.wait_for_restart(mark)
        started = host.said(mark)
        assert (
            len(started) == 1 and "on Forge" in started[0] and "guards: encoder, precision, finite, lora" in started[0]
        )
        assert host.probe.marks() == []
        assert same(host.generate("txt2img", BASE, ON).pictures, before), "the model stays"
        assert_silent(host, row, [("txt2img", BASE), ("img2img", {**BASE, **INIT})], lambda: seeded(host))


@pytest.mark.parametrize("mode", ["offload"], ids=["Z17-F-offload"])
def test_memory_mode(forge: Keeper, mode: str) -> None:
    """On a CPU the modes differ only in what is dropped between two components; the others need a GPU."""
    host = forge(flags=("--always-offload-from-vram",))
    fresh(host)
    calls: Calls = [("txt2img", BASE), ("img2img", {**BASE, **INIT}), ("txt2img", HIRES_PIXEL)]
    assert_silent(host, f"Z17-F-{mode}", calls, lambda: seeded(host))


@pytest.mark.parametrize("mode", ["low-vram", "no-vram", "shared"], ids=lambda mode: f"Z17-F-{mode}")
def test_memory_mode_of_a_gpu(mode: str) -> None:
    pytest.skip("without a GPU Forge sets its memory mode to DISABLED whatever is asked for (memory_management.py)")


@pytest.mark.parametrize("row", ["Z18-F-float8"])
def test_float8_unet(forge: Keeper, row: str) -> None:
    """Stored in float8, computed in float32 by layers that fit their weights to what they are given."""
    host = forge(forge_unet_storage_dtype="float8-e4m3fn")
    fresh(host)
    assert "float8_e4m3fn" in host.probe.dtypes()["unet"]
    assert_silent(host, row, [("txt2img", BASE), ("img2img", {**BASE, **INIT})], lambda: seeded(host))


@pytest.mark.parametrize("row", ["Z03-F-half-vae"])
def test_half_vae(forge: Keeper, row: str) -> None:
    """A VAE that Forge was told to have in half, beside a float32 UNet, is healthy."""
    host = forge(flags=("--vae-in-fp16",))
    fresh(host)
    assert set(host.probe.dtypes()["vae"]) == {"float16"}
    assert_silent(host, row, [("txt2img", BASE), ("img2img", {**BASE, **INIT})], lambda: seeded(host))

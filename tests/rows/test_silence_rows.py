"""Healthy generations on the embedded host: with LibGuard they are bit-identical, and nothing is said."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from demo.bench import Bench
from demo.check import OFF, ON
from demo.faults import BASE, ENCODING, Call, adapted, controlled, pictures, send
from lib_guard.hooks import marked

HIRES = {**BASE, "enable_hr": True, "hr_scale": 1.5}

#: Row -> the requests it is made of.
ROWS: dict[str, list[Call]] = {
    "Z01-D": [Call("txt2img", BASE), Call("txt2img", {**BASE, "cfg_scale": 1.0, "steps": 3})],
    "Z02-D-latent": [Call("txt2img", {**HIRES, "hr_upscaler": "Latent"})],
    "Z02-D-pixel": [Call("txt2img", {**HIRES, "hr_upscaler": "Lanczos"})],
    "Z03-D": [ENCODING["img2img"]],
    "Z04-D": [ENCODING["inpaint"]],
    "Z05-D": [Call("txt2img", {**BASE, "batch_size": 2, "n_iter": 2})],
    "Z06-D": [
        Call("txt2img", {**BASE, "prompt": "a cat <lora:tiny-crimson:0.8>"}),
        Call("txt2img", {**BASE, "prompt": "a cat <lora:tiny-crimson:0.5> <lora:tiny-azure:1>"}),
    ],
    "Z07-D": [Call("txt2img", {**BASE, "prompt": f"a cat {lora}"}) for lora in ("<lora:tiny-azure:1>", "")],
    "Z08-D": [Call("txt2img", {**BASE, "prompt": "a cat in tiny-style"})],
    "Z03-D-detailer": [Call("txt2img", {**BASE, "detailer": True})],
}

MODELS = ["tiny-sd15", "tiny-sdxl", "tiny-sdxl-fp16fix", "tiny-sd3"]


def ledger_entries() -> list[Any]:
    return sys.modules["lib_guard.ledger"].LEDGER.last().entries


def run(bench: Bench, calls: list[Call], scripts: dict[str, Any]) -> list[np.ndarray]:
    found = []
    for call in calls:
        reply = send(bench, call, scripts)
        assert reply.status == 200, reply.json
        found += pictures(reply)
    assert found
    return found


def assert_silent(bench: Bench, calls: list[Call], capfd, between: Callable[[], None] = lambda: None) -> None:
    """The same requests without and with LibGuard give the same pixels, and LibGuard prints not a byte."""
    without = run(bench, calls, OFF)
    between()
    capfd.readouterr()
    with_it = run(bench, calls, ON)
    assert len(with_it) == len(without)
    assert all(np.array_equal(one, other) for one, other in zip(with_it, without))
    assert ledger_entries() == []
    said = capfd.readouterr()
    assert "LibGuard" not in said.out + said.err
    for part in bench.shared.sd_model.components.values():
        assert not isinstance(part, torch.nn.Module) or marked(part) == []


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("dtype", ["FP32", "FP16", "BF16"])
def test_row(bench, capfd, row, dtype):
    bench.options(cuda_dtype=dtype)
    assert_silent(bench, ROWS[row], capfd)


@pytest.mark.parametrize("model", MODELS[1:])
@pytest.mark.parametrize("row", ["Z01-D", "Z02-D-pixel", "Z03-D"])
def test_row_on_other_families(bench, capfd, row, model):
    bench.options(sd_model_checkpoint=model, cuda_dtype="FP16")
    # SDXL's pipelines convert a VAE that overflows in half to float32 themselves and back again: that is healthy.
    assert_silent(bench, ROWS[row], capfd)


@pytest.mark.parametrize("row", ["Z10-D"])
def test_row_tiled_vae(bench, capfd, row):
    bench.options(cuda_dtype="FP16", vae_tiling=True)
    assert_silent(bench, [ENCODING["img2img"], ENCODING["hires"]], capfd)


@pytest.mark.parametrize("row", ["Z14-D"])
@pytest.mark.parametrize("dtype", ["FP32", "FP16", "BF16"])
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_row_controlnet(bench, capfd, row, family, dtype):
    bench.options(sd_model_checkpoint=f"tiny-{family}", cuda_dtype=dtype)
    text = controlled(f"tiny-{family}-controlnet")
    if family == "sd15" or dtype == "FP32":
        # SDXL's ControlNet inpaint leaves its VAE in float32, which is no silence: row P09.
        inpaint = Call("img2img", {**ENCODING["inpaint"].body, "controlnet": f"tiny-{family}-controlnet"})
        assert_silent(bench, [text, inpaint], capfd)
    assert_silent(bench, [text], capfd)


@pytest.mark.parametrize("row", ["Z15-D"])
@pytest.mark.parametrize("dtype", ["FP32", "FP16", "BF16"])
def test_row_ip_adapter(bench, capfd, row, dtype):
    bench.options(cuda_dtype=dtype)
    plain = Call("txt2img", BASE)
    adapter = [adapted(plain), adapted(ENCODING["img2img"])]
    assert not np.array_equal(run(bench, adapter[:1], OFF)[0], run(bench, [plain], OFF)[0]), "the adapter is not there"
    assert_silent(bench, [*adapter, plain, *adapter], capfd)


@pytest.mark.parametrize("row", ["Z09-D"])
def test_row_refiner(bench, capfd, row):
    bench.options(sd_model_checkpoint="tiny-sdxl", cuda_dtype="FP16")
    steps = {**BASE, "steps": 4}
    refined = Call("txt2img", {**steps, "refiner_checkpoint": "tiny-sdxl-refiner"})
    plain = Call("txt2img", steps)
    assert not np.array_equal(run(bench, [refined], OFF)[0], run(bench, [plain], OFF)[0]), "the refiner is not there"
    bench.post("/sdapi/v1/reload-checkpoint")  # so that the refiner comes in mid-generation with LibGuard on
    assert_silent(bench, [plain], capfd)
    assert_silent(bench, [refined, plain], capfd, between=lambda: bench.post("/sdapi/v1/reload-checkpoint"))


@pytest.mark.parametrize("row", ["Z17-D"])
@pytest.mark.parametrize("mode", ["model", "sequential"])
@pytest.mark.parametrize("model", MODELS)
def test_row_offload(bench, capfd, row, mode, model):
    bench.options(sd_model_checkpoint=model, cuda_dtype="FP16", offload_mode=mode)
    assert_silent(bench, [Call("txt2img", BASE), ENCODING["img2img"]], capfd)


@pytest.mark.parametrize("row", ["Z18-D"])
@pytest.mark.parametrize("storage", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("model", ["tiny-sd15", "tiny-sdxl", "tiny-sd3"])
@pytest.mark.parametrize("dtype", ["FP16", "BF16"])
def test_row_stored_in_float8(bench, capfd, row, dtype, model, storage):
    bench.options(sd_model_checkpoint=model, cuda_dtype=dtype, unet_storage=storage)
    assert_silent(bench, [Call("txt2img", BASE), ENCODING["img2img"]], capfd)


@pytest.mark.parametrize("row", ["Z11-D"])
@pytest.mark.parametrize("kind", ["TAESD", "Full"])
def test_row_live_previews(bench, capfd, row, kind):
    """Previews are decoded in another thread while the sampling goes on."""
    bench.options(cuda_dtype="FP16", live_previews=True, show_progress_type=kind)
    seen: list[str] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            picture = bench.get("/sdapi/v1/progress").json["current_image"]
            seen.extend([picture] if picture else [])

    onlooker = threading.Thread(target=look)
    onlooker.start()
    try:
        assert_silent(bench, [Call("txt2img", {**BASE, "steps": 20}), ENCODING["img2img"]], capfd)
    finally:
        over.set()
        onlooker.join()
    assert seen


@pytest.mark.parametrize("row", ["Z12-D"])
def test_row_interrupt(bench, capfd, row):
    """What comes after an interrupted generation is as after none; the interrupt itself comes when it comes."""
    long = Call("txt2img", {**BASE, "steps": 40})

    def interrupted() -> None:
        worker = threading.Thread(target=send, args=(bench, long, ON))
        worker.start()
        while bench.shared.state.sampling_step < 2:
            time.sleep(0.005)
        bench.post("/sdapi/v1/interrupt")
        worker.join()

    assert_silent(bench, ROWS["Z01-D"], capfd, between=interrupted)


@pytest.mark.parametrize("row", ["Z13-D"])
def test_row_checkpoint_switch_and_back(bench, capfd, row):
    def switch_and_back() -> None:
        for model in ("tiny-sdxl", "tiny-sd15"):
            bench.options(sd_model_checkpoint=model)
            assert send(bench, ROWS["Z01-D"][0], ON).status == 200

    assert_silent(bench, ROWS["Z01-D"], capfd, between=switch_and_back)


@pytest.mark.parametrize("row", ["Z16-D"])
def test_row_reload_ui_twice(bench, capfd, row):
    def reload_twice() -> None:
        for _ in range(2):
            bench.reload_ui()

    assert_silent(bench, ROWS["Z01-D"], capfd, between=reload_twice)

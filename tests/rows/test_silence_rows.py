"""Healthy generations on the embedded host: with LibGuard they are bit-identical, and nothing is said."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from demo.bench import Bench
from demo.check import OFF, ON
from demo.faults import BASE, ENCODING, Call, pictures, send
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
    assert marked(bench.shared.sd_model.vae) == []


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
def test_row_controlnet(bench, capfd, row):
    bench.options(sd_model_checkpoint="tiny-sdxl")
    assert_silent(bench, [Call("img2img", {**ENCODING["inpaint"].body, "controlnet": "tiny-sdxl-controlnet"})], capfd)


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

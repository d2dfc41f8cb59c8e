"""Many generations in a row with faults at random places: nothing is left on the model, nothing grows, and whatever
came before, a healthy request gives the reference's pixels."""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from demo.bench import Bench
from demo.check import OFF, ON
from demo.faults import BASE, ENCODING, OVERFLOWN, TXT2IMG, Call, adapted, controlled, pictures, send
from lib_guard.hooks import marked

GENERATIONS = 200
CONTROLLED = controlled("tiny-sd15-controlnet")
CALLS = (Call("txt2img", BASE), ENCODING["img2img"], ENCODING["hires"], CONTROLLED, adapted(TXT2IMG), OVERFLOWN)
ARGS = (
    *([True, "fix"], [True, "warn"], [True, "off"], [False], [True, "fix", "float32"], [None, float("nan")], []),
    *([True, "fix", "auto", "warn"], [True, "off", "auto", "fix"], [True, "fix", "bfloat16", "off"]),
)


class Interrupted(BaseException):
    """What a host raises to end a generation at once: no Exception, so that torch calls no hook for it."""


def nothing(pipeline: Any) -> Iterator[None]:
    yield


def raising(part: str, error: type[BaseException]):
    def fault(pipeline: Any) -> Iterator[None]:
        def fail(*args: Any) -> None:
            raise error("in the middle")

        module = {"unet": pipeline.unet, "decoder": pipeline.vae.decoder, "encoder": pipeline.vae.encoder}[part]
        handle = module.mid_block.register_forward_hook(fail)
        yield
        handle.remove()

    fault.__name__ = f"{error.__name__} in {part}"
    return fault


def straying(path: str):
    """A part of the half model in bfloat16."""

    def fault(pipeline: Any) -> Iterator[None]:
        component, _, inside = path.partition(".")
        part = getattr(pipeline, component).get_submodule(inside)
        before = [(parameter, parameter.data) for parameter in part.parameters()]
        part.to(torch.bfloat16)
        yield
        # One by one: an adapter may have come or gone meanwhile.
        for parameter, data in before:
            parameter.data = data

    fault.__name__ = f"{path} strays"
    return fault


def overflowing(pipeline: Any) -> Iterator[None]:
    layers = [pipeline.vae.encoder.conv_in, pipeline.vae.decoder.conv_in]
    before = [layer.weight.data for layer in layers]
    for layer in layers:
        layer.weight.data = layer.weight.data * 30_000
    yield
    for layer, weight in zip(layers, before):
        layer.weight.data = weight


def diverging(step: int):
    """From some call of the UNet on, what it gives is NaN."""

    def fault(pipeline: Any) -> Iterator[None]:
        calls = 0

        def spoil(module: Any, args: Any, output: Any) -> Any:
            nonlocal calls
            calls += 1
            return tuple(part * float("nan") for part in output) if calls >= step else None

        handle = pipeline.unet.register_forward_hook(spoil)
        yield
        handle.remove()

    fault.__name__ = f"NaN from call {step} on"
    return fault


FAULTS = (
    *(nothing, overflowing, diverging(1), diverging(2)),
    *(straying(path) for path in ("vae.decoder", "unet.mid_block", "text_encoder.text_model.final_layer_norm")),
    *(raising(part, error) for part in ("unet", "decoder", "encoder") for error in (ValueError, Interrupted)),
)


def test_many_generations_with_random_faults(bench: Bench):
    watches = bench.script_globals("LibGuard")["EXTENSION"].watches
    bench.options(cuda_dtype="FP16")
    reference = pictures(send(bench, CALLS[0], OFF))[0]
    chance, started = random.Random(0), count("Watch")
    for number in range(GENERATIONS):
        call, args, fault = chance.choice(CALLS), chance.choice(ARGS), chance.choice(FAULTS)
        with contextmanager(fault)(bench.shared.sd_model):
            send(bench, call, {"LibGuard": {"args": args}})
        for part in [*bench.shared.sd_model.components.values(), *bench.sd_models.model_data.controlnets.values()]:
            if isinstance(part, torch.nn.Module):
                assert marked(part) == [], (number, type(part), args, fault.__name__)
        assert watches._open == [], (number, args, fault.__name__)
        if number % 10 == 9:
            assert np.array_equal(pictures(send(bench, CALLS[0], ON))[0], reference), (number, args, fault.__name__)
    gc.collect()
    assert count("Watch") <= started + 1 and count("Reconcile") == 0
    assert len(sys.modules["lib_guard.ledger"].LEDGER.generations()) == 100


def count(name: str) -> int:
    """How many objects of a class of LibGuard's are alive."""
    gc.collect()
    return sum(type(one).__name__ == name and type(one).__module__.startswith("lib_guard") for one in gc.get_objects())

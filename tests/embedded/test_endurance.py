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
from demo.faults import BASE, ENCODING, Call, pictures, send
from lib_guard.hooks import marked

GENERATIONS = 150
CALLS = (Call("txt2img", BASE), ENCODING["img2img"], ENCODING["hires"])
ARGS = ([True, "fix"], [True, "warn"], [True, "off"], [False], [True, "fix", "float32"], [None, float("nan")], [])


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


def half_decoder(pipeline: Any) -> Iterator[None]:
    before = {name: tensor.clone() for name, tensor in pipeline.vae.state_dict().items()}
    pipeline.vae.decoder.half()
    yield
    pipeline.vae.decoder.float()
    pipeline.vae.load_state_dict(before)


FAULTS = (
    *(nothing, half_decoder),
    *(raising(part, error) for part in ("unet", "decoder", "encoder") for error in (ValueError, Interrupted)),
)


def test_many_generations_with_random_faults(bench: Bench):
    watches = bench.script_globals("LibGuard")["EXTENSION"].watches
    reference = pictures(send(bench, CALLS[0], OFF))[0]
    chance, started = random.Random(0), count("Watch")
    for number in range(GENERATIONS):
        call, args, fault = chance.choice(CALLS), chance.choice(ARGS), chance.choice(FAULTS)
        with contextmanager(fault)(bench.shared.sd_model):
            send(bench, call, {"LibGuard": {"args": args}})
        for name, part in bench.shared.sd_model.components.items():
            if isinstance(part, torch.nn.Module):
                assert marked(part) == [], (number, name, args, fault.__name__)
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

"""The LoRA guard in the embedded host: when it looks, what its policies do, and that a random sequence never goes
wrong."""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np
import pytest
import torch

from demo.check import OFF, ON
from demo.faults import HEALTHY, TXT2IMG, Call, pictures, send
from demo.lora_faults import AZURE, CRIMSON, FOR_GOOD, FUSED, with_loras
from lib_guard.tensors.baseline import ATTRIBUTE

ON_ARGS: list[Any] = [True, "fix", "auto", "fix"]


def with_policy(policy: str) -> dict[str, Any]:
    return {"LibGuard": {"args": [*ON_ARGS, policy]}}


def entries() -> list[Any]:
    return sys.modules["lib_guard.ledger"].LEDGER.last().entries


def codes() -> list[str]:
    return [entry.finding.code for entry in entries()]


@pytest.fixture
def host(bench):
    """With weights fresh from the disk, before and after."""
    for moment in ("before", "after"):
        bench.post("/sdapi/v1/unload-checkpoint")
        bench.options(**HEALTHY, lib_guard_lora_paranoid=False, lib_guard_lora_silenced="")
        if moment == "before":
            yield bench


@pytest.fixture
def reads(host, monkeypatch):
    """How many components' weights have been read."""
    found: list[str] = []
    module = sys.modules["lib_guard.tensors.baseline"]
    measure = module.measure

    def counted(component: torch.nn.Module, names: Any = None) -> Any:
        found.append(type(component).__name__)
        return measure(component, names)

    for user in ("lib_guard.guards.lora", "lib_guard.guards.lora_ladder", "lib_guard.guards.lora_applied"):
        monkeypatch.setattr(sys.modules[user], "measure", counted)
    return found


@pytest.mark.parametrize("call", [TXT2IMG, CRIMSON], ids=["none", "one"])
def test_for_what_was_asked_for_last_nothing_is_read(host, reads, call):
    send(host, call, ON)
    assert reads, "the first time it must be"
    reads.clear()
    for _ in range(3):
        send(host, call, ON)
    assert reads == [] and entries() == []


def test_a_new_model_is_read_once(host, reads):
    send(host, TXT2IMG, ON)
    assert sorted(reads) == ["CLIPTextModel", "UNet2DConditionModel"]


def test_after_a_failure_it_is(host, reads):
    send(host, TXT2IMG, ON)
    handle = host.shared.sd_model.unet.mid_block.register_forward_hook(_fail)
    try:
        assert send(host, TXT2IMG, ON).status != 200
    finally:
        handle.remove()
    reads.clear()
    send(host, TXT2IMG, ON)
    assert reads and entries() == []
    reads.clear()
    send(host, TXT2IMG, ON)
    assert reads == []


def _fail(*args: Any) -> None:
    raise RuntimeError("in the middle")


def test_paranoid_reads_every_time_and_sees_what_nobody_asked_for(host, reads):
    host.options(lib_guard_lora_paranoid=True)
    reference = pictures(send(host, TXT2IMG, ON))[0]
    with torch.no_grad():
        host.shared.sd_model.unet.mid_block.attentions[0].proj_in.weight.add_(0.3)
    assert np.array_equal(pictures(send(host, TXT2IMG, ON))[0], reference) and codes() == ["LG301"]
    reads.clear()
    send(host, TXT2IMG, ON)
    assert reads and entries() == []


def test_off_leaves_nothing_on_the_model(host):
    for scripts in (OFF, with_policy("off")):
        send(host, CRIMSON, scripts)
        parts = [module for module in host.shared.sd_model.components.values() if isinstance(module, torch.nn.Module)]
        assert parts and not any(ATTRIBUTE in vars(module) for module in parts)


def test_warn_says_it_and_leaves_the_weights(host):
    host.options(**FOR_GOOD)
    clean = pictures(send(host, TXT2IMG, with_policy("warn")))[0]
    send(host, CRIMSON, with_policy("warn"))
    left = pictures(send(host, TXT2IMG, with_policy("warn")))[0]
    (entry,) = entries()
    assert entry.finding.code == "LG301" and entry.repair is None and not np.array_equal(left, clean)
    assert np.array_equal(pictures(send(host, TXT2IMG, ON))[0], clean)


def test_what_happened_while_it_was_off_is_seen(host):
    host.options(**FOR_GOOD)
    clean = pictures(send(host, TXT2IMG, ON))[0]
    send(host, CRIMSON, OFF)
    assert np.array_equal(pictures(send(host, TXT2IMG, ON))[0], clean) and codes() == ["LG301"]


def test_what_an_older_load_has_measured_is_believed(host):
    """Reload UI: new code, the same model, and a LoRA in it."""
    host.options(**FOR_GOOD)
    clean = pictures(send(host, TXT2IMG, ON))[0]
    send(host, CRIMSON, ON)
    host.reload_ui()
    assert np.array_equal(pictures(send(host, TXT2IMG, ON))[0], clean) and codes() == ["LG301"]


def test_a_silenced_lora_is_not_warned_about(host):
    nowhere = with_loras("tiny-nowhere:1")
    send(host, nowhere, ON)
    assert codes() == ["LG302"]
    host.options(lib_guard_lora_silenced="another, Tiny-Nowhere")
    send(host, TXT2IMG, ON)
    send(host, nowhere, ON)
    assert codes() == []


def test_a_changed_checkpoint_is_a_new_baseline(host):
    send(host, CRIMSON, ON)
    host.options(sd_model_checkpoint="tiny-sdxl")
    send(host, TXT2IMG, ON)
    assert entries() == []
    host.options(sd_model_checkpoint="tiny-sd15")
    send(host, TXT2IMG, ON)
    assert entries() == []


def test_a_mix_that_an_extension_writes_into_the_model_stays(host):
    """As Model Mixer and SuperMerger do; and what a LoRA leaves in it afterwards is taken out of the mix."""
    host.options(**FOR_GOOD)
    send(host, TXT2IMG, ON)
    with torch.no_grad():
        for parameter in host.shared.sd_model.unet.parameters():
            parameter.mul_(1.01)
    mixed = pictures(send(host, TXT2IMG, OFF))[0]
    assert np.array_equal(pictures(send(host, TXT2IMG, ON))[0], mixed) and entries() == []


# At random.

SETS = {"none": TXT2IMG, "crimson": CRIMSON, "azure": AZURE, "half": with_loras("tiny-crimson:0.5")}
METHODS = ("adapters", FUSED["lora_method"], FOR_GOOD["lora_method"])
MOVES = 40


def test_a_random_sequence_never_goes_wrong(host):
    chance, references = random.Random(11), {}
    quick = {key: Call(call.endpoint, {**call.body, "steps": 1}) for key, call in SETS.items()}
    for key, call in quick.items():
        for method in METHODS:
            host.post("/sdapi/v1/unload-checkpoint")
            host.options(lora_method=method)
            references[key, method] = pictures(send(host, call, OFF))[0]
    host.post("/sdapi/v1/unload-checkpoint")
    wrong = []
    for number in range(MOVES):
        key, method, fails = chance.choice([*SETS]), chance.choice(METHODS), chance.random() < 0.3
        host.options(lora_method=method)
        handle = host.shared.sd_model.unet.mid_block.register_forward_hook(_fail) if fails else None
        found = pictures(send(host, quick[key], ON))
        if handle is not None:
            handle.remove()
        elif not np.array_equal(found[0], references[key, method]):
            wrong.append((number, key, method))
    assert wrong == []

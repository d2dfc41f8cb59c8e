"""Rows L01-L07 and L18 on AUTOMATIC1111: by pixels and by weights, bit for bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from a1111_rows import LATENT_HIRES, RED, prompter, regions, reload_ui, settle, start
from harness.chance import Move, assert_never_wrong, drawn
from harness.keeper import Host, Keeper
from harness.proof import BASE, OFF, ON, TABLE, Result, assert_silent, digest, same
from harness.sequence import Sequel, Step, ask, assert_gone, choose, probe
from safetensors.numpy import load_file, save_file

BOTH = {**BASE, "prompt": "a red cat <lora:redlora:1> <lora:bluelora:1>"}
PLAIN_REGIONS = {**regions(), "prompt": "a red cat BREAK a blue dog"}
DISABLED = {**BASE, "disable_extra_networks": True}

OLD_METHOD = Sequel("L01-A", 'A LoRA, then "use old method", then none', [ask(RED), choose(lora_functional=True)], BASE)
PROMPTER = Sequel("L02-A", "A LoRA, then Regional Prompter (Latent) without one", [ask(RED)], PLAIN_REGIONS)
SETTING = Sequel(
    "L03-A",
    '"Add network to prompt", then None',
    [choose(sd_lora="redlora"), ask(BASE), choose(sd_lora="None")],
    BASE,
    shows=False,
)
BROKEN = Sequel(
    "L04-A",
    "A KeyError in the second LoRA of a layer, then none",
    [probe("break_network", name="bluelora", layer="attn2_to_k"), ask(BOTH), probe("break_network", name="")],
    BASE,
)
WHILE_DISABLED = Sequel("L05-A-disabled", "A LoRA, then extra networks disabled", [ask(RED)], DISABLED)
AFTER_DISABLED = Sequel(
    "L05-A-plain", "A LoRA, then extra networks disabled, then a plain request", [ask(RED), ask(DISABLED)], BASE, False
)


@pytest.fixture
def host(a1111: Keeper) -> Iterator[Host]:
    """The host as most rows want it; settings are put back."""
    host = start(a1111, "full")
    yield host
    host.options(lora_functional=False, sd_lora="None")
    settle(host)


@pytest.mark.parametrize("row", [OLD_METHOD, BROKEN, WHILE_DISABLED], ids=lambda row: row.id)
def test_left_in_the_weights(host: Host, row: Sequel) -> None:
    def fresh() -> None:
        host.options(lora_functional=False)
        settle(host)

    assert_gone(host, row, {"LG301"}, fresh, [choose(lora_functional=True)] if row is OLD_METHOD else ())


@pytest.mark.parametrize("row_id", ["L01-A-touched"])
def test_left_while_the_file_is_touched(host: Host, row_id: str) -> None:
    """A file that gets another time of change on the disk does not make what is in the weights the checkpoint's."""

    def touch(host: Host, scripts: dict[str, Any]) -> None:
        os.utime(host.data / "models" / "Stable-diffusion" / "tinysd1.safetensors")

    def fresh() -> None:
        host.options(lora_functional=False)
        settle(host)

    first = choose(lora_functional=True)
    row = Sequel(row_id, "As L01-A, and the checkpoint's file is touched", [ask(RED), first, touch], BASE)
    assert_gone(host, row, {"LG301"}, fresh, [first])


@pytest.mark.parametrize("row", [SETTING, AFTER_DISABLED], ids=lambda row: row.id)
def test_left_in_the_encoded_prompts(host: Host, row: Sequel) -> None:
    assert_gone(host, row, {"LG305", "LG301"}, lambda: settle(host))


@pytest.mark.parametrize("row", [PROMPTER], ids=lambda row: row.id)
def test_regional_prompter(a1111: Keeper, row: Sequel) -> None:
    host = start(a1111, "full", prompter())
    assert_gone(host, row, {"LG301"}, lambda: settle(host))


@pytest.mark.parametrize("row_id", ["L06-A"])
def test_checkpoint_without_text_encoder(host: Host, row_id: str) -> None:
    """The model object stays where two checkpoints have one config: here by a name that differs in its ending alone."""
    folder, textless = host.data / "models" / "Stable-diffusion", "tinysd1.SAFETENSORS"
    if (folder / textless).exists():
        pytest.skip("the file system does not tell names apart that differ in case alone")
    weights = load_file(folder / "othersd1.safetensors")
    save_file({name: one for name, one in weights.items() if "cond_stage" not in name}, folder / textless)
    assert host.post("/sdapi/v1/refresh-checkpoints").status == 200
    row = Sequel(
        row_id,
        "A LoRA, then a checkpoint without text encoder",
        [ask(RED), choose(sd_model_checkpoint=textless)],
        BASE,
    )
    try:
        assert_gone(host, row, {"LG301"}, lambda: settle(host), [choose(sd_model_checkpoint=textless)])
    finally:
        settle(host)
        (folder / textless).unlink()
        assert host.post("/sdapi/v1/refresh-checkpoints").status == 200


@pytest.mark.parametrize("row_id", ["L07-A"])
def test_extension_switched_off(a1111: Keeper, row_id: str) -> None:
    host = start(a1111, "full")

    def switch(on: bool) -> Step:
        def step(host: Host, scripts: dict[str, Any]) -> None:
            host.options(disabled_extensions=[] if on else ["Lora"])
            reload_ui(host)

        return step

    def fresh() -> None:
        switch(True)(host, OFF)
        settle(host)

    row = Sequel(row_id, "A LoRA, then the Lora extension off and Reload UI", [ask(RED), switch(False)], BASE)
    try:
        assert_gone(host, row, {"LG301"}, fresh, [switch(False)])
    finally:
        fresh()


# Healthy requests.

ELSEWHERE = {**RED, "override_settings": {"sd_model_checkpoint": "othersd1.safetensors"}}
SWEPT = [{**BASE, "prompt": f"{BASE['prompt']} <lora:redlora:{strength}>"} for strength in (1, 0.75, 0.25, -0.5)]

SILENT: dict[str, list[dict[str, Any]]] = {
    "Z06-A-passes": [{**RED, **LATENT_HIRES}, {**RED, **LATENT_HIRES, "hr_prompt": BOTH["prompt"]}, BASE],
    "Z06-A-batches": [{**BOTH, "batch_size": 2, "n_iter": 2}, {**BASE, "n_iter": 2}],
    "Z07-A-strengths": [*SWEPT, BASE, *reversed(SWEPT)],
    "Z13-A-loras": [RED, ELSEWHERE, BASE, RED, ELSEWHERE, RED],
}


@pytest.mark.parametrize("row_id", SILENT)
def test_silent(host: Host, row_id: str) -> None:
    assert_silent(host, row_id, [("txt2img", body) for body in SILENT[row_id]], lambda: settle(host))


# What does not get in.


def lora(host: Host, name: str) -> Path:
    return host.data / "models" / "Lora" / f"{name}.safetensors"


def refresh(host: Host) -> None:
    assert host.post("/sdapi/v1/refresh-loras").status == 200


def tagged(name: str) -> dict[str, Any]:
    return {**BASE, "prompt": f"a red cat on a green chair <lora:{name}:1>"}


@pytest.mark.parametrize("kind", [pytest.param("nowhere", id="L18-A-nowhere"), pytest.param("idle", id="L18-A-idle")])
def test_without_effect(host: Host, kind: str) -> None:
    red = load_file(lora(host, "redlora"))
    changed = {
        "nowhere": {name.replace("lora_", "lora_elsewhere_", 1): one for name, one in red.items()},
        "idle": {name: np.zeros_like(one) if "lora_up" in name else one for name, one in red.items()},
    }
    save_file(changed[kind], lora(host, kind))
    refresh(host)
    result = TABLE.add(host, Result(f"L18-A-{kind}", "A LoRA that changes nothing"))
    settle(host)
    plain = host.generate("txt2img", BASE, OFF).pictures
    without = host.generate("txt2img", tagged(kind), OFF).pictures
    result.without = f"the picture without it ({digest(without)})"
    settle(host)
    mark = host.mark()
    with_ = host.generate("txt2img", tagged(kind), ON).pictures
    entries, said = host.probe.entries(), host.said(mark)
    result.with_, result.codes = digest(with_), " ".join(entry["code"] for entry in entries)
    assert same(without, plain) and same(with_, plain), "it has an effect"
    assert result.codes == "LG302" and len(said) == 1 and f'"{kind}"' in said[0], said
    result.passed = True


BAD_FILES = {
    "truncated": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "huge-header": lambda whole: struct.pack("<Q", 1 << 40) + whole[8:],
    "hostile": lambda whole: struct.pack("<Q", 30) + b'{"<script>":' + b"[" * 18 + whole,
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_file(host: Host, kind: str) -> None:
    lora(host, f"bad-{kind}").write_bytes(BAD_FILES[kind](lora(host, "redlora").read_bytes()))
    refresh(host)
    settle(host)
    without = host.generate("txt2img", tagged(f"bad-{kind}"), OFF)
    settle(host)
    mark = host.mark()
    with_ = host.generate("txt2img", tagged(f"bad-{kind}"), ON)
    said = host.said(mark)
    assert with_.status == without.status == 200 and same(with_.pictures, without.pictures)
    assert len(said) == 1 and "LG306" in said[0] and "Traceback" not in said[0], said
    assert str(host.data) not in said[0]


@pytest.mark.parametrize(
    "name", ["<img src=x onerror=alert(1)>", "../../secret", "a" * 10_000], ids=["markup", "path", "long"]
)
def test_hostile_name(host: Host, name: str) -> None:
    mark = host.mark()
    without = host.generate("txt2img", tagged(name.replace(">", "")), OFF)
    with_ = host.generate("txt2img", tagged(name.replace(">", "")), ON)
    said = host.said(mark)
    assert with_.status == without.status and same(with_.pictures, without.pictures)
    assert len(said) == 1 and "LG302" in said[0] and len(said[0]) < 1500, said
    assert len(json.dumps(host.probe.entries())) < 4000


def test_replaced_file(host: Host) -> None:
    """The host reads the new file, but merges nothing anew, because the names are equal; LibGuard has it merged."""
    place = lora(host, "replaced")
    shutil.copy(lora(host, "redlora"), place)
    refresh(host)
    settle(host)
    old = host.generate("txt2img", tagged("replaced"), OFF).pictures
    settle(host)
    assert same(host.generate("txt2img", tagged("replaced"), ON).pictures, old)
    shutil.copy(lora(host, "bluelora"), place)
    new = host.generate("txt2img", tagged("replaced"), ON).pictures
    settle(host)
    expected = host.generate("txt2img", tagged("replaced"), OFF).pictures
    assert not same(expected, old) and same(new, expected)


# At random.

SETS = {
    "none": BASE["prompt"],
    "red": RED["prompt"],
    "half": f"{BASE['prompt']} <lora:redlora:0.5>",
    "both": f"{BASE['prompt']} <lora:redlora:0.7> <lora:bluelora:-0.4>",
    "green": f"{BASE['prompt']} <lora:greenunet:1>",
}
RAISE, INTERRUPT, NOTHING = (probe("at_step", step=1, what=what) for what in ("raise", "interrupt", "nothing"))
KEY_ERROR, MENDED = probe("break_network", name="bluelora", layer="attn2"), probe("break_network", name="")


def quick(loras: str, **more: Any) -> dict[str, Any]:
    return {**BASE, "steps": 1, "prompt": SETS[loras], **more}


def reference(key: str) -> Move:
    loras, _, way = key.partition(" ")
    return Move(key, quick(loras), [choose(lora_functional=way == "functional")])


def draw(chance: random.Random) -> Move:
    kind, loras = chance.choice(KINDS), chance.choice([*SETS])
    functional = chance.random() < 0.2
    mode, key = choose(lora_functional=functional), f"{loras} functional" if functional and loras != "none" else loras
    name = f"{kind}, {key}"
    if kind == "plain":
        return Move(name, quick(loras), [mode], expected=key, empty=loras == "none")
    if kind == "empty":
        return Move(name, quick("none"), [mode], expected="none", empty=True)
    if kind == "disabled":
        return Move(name, quick("none", disable_extra_networks=True), [mode], expected="none", empty=True)
    if kind == "checkpoint":
        away = choose(sd_model_checkpoint="othersd1.safetensors")
        return Move(name, quick(loras), [mode, away], [choose(sd_model_checkpoint="tinysd1.safetensors")])
    if kind == "setting":
        return Move(name, quick("none"), [mode, choose(sd_lora="redlora")], [choose(sd_lora="None")])
    if kind == "broken":
        return Move(name, quick("both"), [mode, KEY_ERROR], [MENDED])
    return Move(name, quick(loras), [mode, RAISE if kind == "raise" else INTERRUPT], [NOTHING])


KINDS = ("plain", "plain", "empty", "empty", "disabled", "checkpoint", "setting", "broken", "raise", "interrupt")


@pytest.mark.parametrize("row_id", ["L19-A-random"])
def test_random_sequence(host: Host, row_id: str) -> None:
    keys = [*SETS, *(f"{loras} functional" for loras in SETS if loras != "none")]

    def fresh() -> None:
        host.options(lora_functional=False, sd_lora="None")
        settle(host)

    assert_never_wrong(host, row_id, drawn(draw), {key: reference(key) for key in keys}, fresh)

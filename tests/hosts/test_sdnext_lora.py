"""Rows L09-L15 and L18 on SD.Next: by pixels and by weights, bit for bit.

By default SD.Next fuses LoRAs into the weights and subtracts them again. "Fresh" is what the checkpoint's files hold.
"""

from __future__ import annotations

import random
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.chance import Move, assert_never_wrong, drawn
from harness.keeper import Host, Keeper
from harness.proof import BASE, INIT, OFF, ON, TABLE, Result, assert_silent, digest, same
from harness.proof import fresh as load_afresh
from harness.sequence import Sequel, Step, ask, assert_gone, choose, probe
from safetensors.numpy import load_file, save_file
from sdnext_rows import HIRES_PIXEL, SD15, SDXL, options

#: The options of these rows, as they are by default.
DEFAULTS: dict[str, Any] = {
    "lora_fuse_native": True,
    "lora_force_reload": False,
    "lora_force_diffusers": False,
    "lora_fuse_diffusers": False,
    "lora_apply_te": False,
}

DISABLED = {"extra": {"disable_extra_networks": True}}
TEXT = {"extra": {"lora_apply_te": True}}


def tagged(*tags: str, **more: Any) -> dict[str, Any]:
    return {**BASE, "prompt": " ".join(["a red cat", *(f"<lora:{tag}>" for tag in tags)]), **more}


PLAIN = tagged()
CRIMSON, HALF, TEAL = tagged("tiny-crimson:1"), tagged("tiny-crimson:0.5"), tagged("teal:1")
RELOADING: Step = choose(lora_force_reload=True)
DIFFUSERS: Step = choose(lora_force_diffusers=True)
FUSED: Step = choose(lora_force_diffusers=True, lora_fuse_diffusers=True)

ROWS = [
    Sequel("L09-S", "A LoRA, then the same at half strength, then none", [ask(CRIMSON), ask(HALF)], PLAIN),
    Sequel("L09-S-another", "A LoRA, then another one", [ask(CRIMSON)], TEAL),
    Sequel(
        "L10-S",
        '"LoRA force reload always": a LoRA, none, the LoRA, none',
        [RELOADING, ask(CRIMSON), ask(PLAIN), ask(CRIMSON)],
        PLAIN,
    ),
    Sequel("L11-S", "Fused, then not fused, then none", [ask(CRIMSON), choose(lora_fuse_native=False)], PLAIN),
    Sequel("L12-S", "A LoRA of the text encoder too, by request, then none", [ask({**CRIMSON, **TEXT})], PLAIN),
    Sequel(
        "L12-S-option",
        "The same by option",
        [choose(lora_apply_te=True), ask(CRIMSON), choose(lora_apply_te=False)],
        PLAIN,
    ),
    Sequel("L13-S", "A native LoRA, then the diffusers method, then none", [ask(CRIMSON), DIFFUSERS], PLAIN),
    Sequel("L13-S-fused", "Diffusers method, fused: a LoRA, then none", [FUSED, ask(TEAL)], PLAIN),
    Sequel(
        "L13-S-fused-again",
        "Diffusers method, fused: a LoRA, none, the LoRA",
        [FUSED, ask(TEAL), ask(PLAIN)],
        TEAL,
    ),
    Sequel("L05-S-disabled", "A LoRA, then extra networks disabled", [ask(CRIMSON)], {**PLAIN, **DISABLED}),
    Sequel(
        "L14-S-unloading",
        "Interrupted while a LoRA is taken out, then none",
        [ask(CRIMSON), probe("interrupt_at_layer", count=10), ask(PLAIN)],
        PLAIN,
    ),
    Sequel(
        "L14-S-loading",
        "Interrupted while a LoRA is loaded, then the same again",
        [probe("interrupt_at_layer", count=10), ask(CRIMSON)],
        CRIMSON,
    ),
]


def started(sdnext: Keeper, **settings: Any) -> Host:
    """The host with a second LoRA in the form that SD.Next reads: the first one's layers of the UNet the other way
    round. (With the text encoder's, its diffusers method fails the first time.)"""
    host = sdnext(**settings)
    place = lora(host, "teal")
    if not place.exists():
        host.probe("find_files")
        tensors = load_file(lora(host, "tiny-crimson"))
        unet = {name: one for name, one in tensors.items() if name.startswith("lora_unet")}
        save_file({name: np.flip(one, 0).copy() if "lora_up" in name else one for name, one in unet.items()}, place)
        save_file(unet, lora(host, "wine"))
        assert host.post("/sdapi/v1/refresh-loras").status == 200
    return host


def lora(host: Host, name: str) -> Path:
    return host.data / "models" / "Lora" / f"{name}.safetensors"


def afresh(host: Host) -> None:
    host.options(**DEFAULTS)
    host.probe("interrupt_at_layer", count=0)
    host.generate("txt2img", PLAIN, OFF)
    host.probe("forget_networks")
    load_afresh(host)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_left_behind(sdnext: Keeper, row: Sequel) -> None:
    host = started(sdnext)
    first = [FUSED] if "fused" in row.id else [DIFFUSERS] if row.id == "L13-S" else []
    try:
        assert_gone(host, row, {"LG301", "LG305"}, lambda: afresh(host), first)
    finally:
        afresh(host)


@pytest.mark.parametrize("cycles", [pytest.param(count, id=f"L15-S-{count}") for count in (1, 10, 50)])
def test_cycles(sdnext: Keeper, cycles: int) -> None:
    host = started(sdnext, cuda_dtype="BF16")
    steps = ([ask({**CRIMSON, "steps": 1}), ask({**PLAIN, "steps": 1})] * cycles)[:-1]
    row = Sequel(f"L15-S-{cycles}", f"bfloat16: {cycles} times a LoRA and none", steps, PLAIN)
    assert_gone(host, row, {"LG301"}, lambda: afresh(host))


@pytest.mark.parametrize("row_id", ["L09-S-sweep"])
def test_sweep(sdnext: Keeper, row_id: str) -> None:
    """Four strengths in a row: four pictures, each that of a fresh process."""
    host, strengths = started(sdnext), ("1", "0.75", "0.5", "0.25")
    bodies = [tagged(f"tiny-crimson:{strength}") for strength in strengths]
    result = TABLE.add(host, Result(row_id, "A sweep of strengths"))
    references = []
    for body in bodies:
        afresh(host)
        references.append(host.generate("txt2img", body, OFF).pictures)
    afresh(host)
    without = [host.generate("txt2img", body, OFF).pictures for body in bodies]
    afresh(host)
    with_ = [host.generate("txt2img", body, ON).pictures for body in bodies]
    result.reference, result.without, result.with_ = (
        " ".join(digest(one) for one in row) for row in (references, without, with_)
    )
    assert len({digest(one) for one in references}) == 4
    assert not all(same(one, other) for one, other in zip(without[1:], references[1:])), "it does not fail"
    assert all(same(one, other) for one, other in zip(with_, references)), result
    result.codes, result.passed = "LG301", True


@pytest.mark.parametrize("kind", [pytest.param("nowhere", id="L18-S-nowhere"), pytest.param("idle", id="L18-S-idle")])
def test_without_effect(sdnext: Keeper, kind: str) -> None:
    host = started(sdnext)
    result = TABLE.add(host, Result(f"L18-S-{kind}", "A LoRA that changes nothing"))
    afresh(host)
    plain = host.generate("txt2img", PLAIN, OFF).pictures
    without = host.generate("txt2img", tagged(f"tiny-{kind}:1"), OFF).pictures
    afresh(host)
    mark = host.mark()
    with_ = host.generate("txt2img", tagged(f"tiny-{kind}:1"), ON).pictures
    entries, said = host.probe.entries(), host.said(mark)
    result.without, result.with_ = digest(without), digest(with_)
    result.codes = " ".join(entry["code"] for entry in entries)
    assert same(without, plain) and same(with_, plain), "it has an effect"
    assert result.codes == "LG302" and len(said) == 1 and f"tiny-{kind}" in said[0], said
    result.passed = True


# Healthy: copies of the layers instead of fused LoRAs.

SILENT = [TEAL, PLAIN, CRIMSON, HALF, tagged("tiny-crimson:0.7", "teal:0.4"), PLAIN, TEAL]


@contextmanager
def unfused(host: Host) -> Iterator[None]:
    with options(host, {"lora_fuse_native": False}, DEFAULTS):
        yield


FUSED_AND_SILENT: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "Z06-S-two": [("txt2img", tagged("tiny-crimson:0.7", "teal:0.4"))],
    "Z06-S-again": [("txt2img", PLAIN), ("txt2img", TEAL), ("img2img", {**TEAL, **INIT}), ("txt2img", TEAL)],
    "Z02-S-lora": [("txt2img", {**HIRES_PIXEL, **TEAL})],
    "Z05-S-lora": [("txt2img", tagged("teal:1", batch_size=2, n_iter=2))],
}


@pytest.mark.parametrize("row", FUSED_AND_SILENT)
def test_silent_while_fused(sdnext: Keeper, row: str) -> None:
    """As long as nothing is to be taken out again."""
    host = started(sdnext)
    assert_silent(host, row, FUSED_AND_SILENT[row], lambda: afresh(host))


@pytest.mark.parametrize("row_id", ["Z07-S"])
def test_silent_with_copies(sdnext: Keeper, row_id: str) -> None:
    host = started(sdnext)
    with unfused(host):
        assert_silent(host, row_id, [("txt2img", body) for body in SILENT], lambda: _prepared(host))


@pytest.mark.parametrize("row_id", ["Z13-S-lora"])
def test_silent_while_checkpoints_change(sdnext: Keeper, row_id: str) -> None:
    host = started(sdnext)
    calls = [
        ("txt2img", {**body, "override_settings": {"sd_model_checkpoint": checkpoint}})
        for body, checkpoint in ((CRIMSON, SD15), (PLAIN, SDXL), (PLAIN, SD15), (TEAL, SD15))
    ]
    with unfused(host):
        assert_silent(host, row_id, calls, lambda: _prepared(host))
    host.options(sd_model_checkpoint=SD15)


@pytest.mark.parametrize("mode", ["balanced", "model"], ids=lambda mode: f"Z17-S-{mode}-lora")
def test_silent_while_offloaded(sdnext: Keeper, mode: str) -> None:
    host = started(sdnext)
    with unfused(host), options(host, {"diffusers_offload_mode": mode}, {"diffusers_offload_mode": "none"}):
        assert_silent(host, f"Z17-S-{mode}-lora", [("txt2img", body) for body in SILENT], lambda: _prepared(host))
    _prepared(host)


@pytest.mark.parametrize("row_id", ["Z18-S-int8-lora"])
def test_silent_while_quantized(sdnext: Keeper, row_id: str) -> None:
    host = started(sdnext, sdnq_dequantize_compile=False, sdnq_quantize_conv_layers=True)
    quantized = {"sdnq_quantize_weights": ["Model", "TE"], "sdnq_quantize_weights_mode": "int8"}
    with unfused(host), options(host, quantized, {"sdnq_quantize_weights": []}):
        assert_silent(host, row_id, [("txt2img", body) for body in SILENT], lambda: _prepared(host))
    _prepared(host)


def _prepared(host: Host) -> None:
    host.generate("txt2img", PLAIN, OFF)
    host.probe("forget_networks")
    load_afresh(host)


# Files that are not as they should be.


BAD_FILES = {
    "truncated": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "huge-header": lambda whole: struct.pack("<Q", 1 << 40) + whole[8:],
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_file(sdnext: Keeper, kind: str) -> None:
    host = started(sdnext)
    lora(host, f"bad-{kind}").write_bytes(BAD_FILES[kind](lora(host, "teal").read_bytes()))
    assert host.post("/sdapi/v1/refresh-loras").status == 200
    afresh(host)
    without = host.generate("txt2img", tagged(f"bad-{kind}:1"), OFF)
    mark = host.mark()
    with_ = host.generate("txt2img", tagged(f"bad-{kind}:1"), ON)
    said = host.said(mark)
    assert with_.status == without.status == 200 and same(with_.pictures, without.pictures)
    assert len(said) == 1 and "LG306" in said[0] and str(host.data) not in said[0], said


@pytest.mark.parametrize(
    "name", ["<img src=x onerror=alert(1)", "../../secret", "a" * 10_000], ids=["markup", "path", "long"]
)
def test_hostile_name(sdnext: Keeper, name: str) -> None:
    host = started(sdnext)
    afresh(host)
    without = host.generate("txt2img", tagged(f"{name}:1"), OFF)
    mark = host.mark()
    with_ = host.generate("txt2img", tagged(f"{name}:1"), ON)
    said = host.said(mark)
    assert with_.status == without.status and same(with_.pictures, without.pictures)
    assert len(said) == 1 and "LG302" in said[0] and len(said[0]) < 1500, said


@pytest.mark.parametrize("diffusers", [False, True], ids=["native", "diffusers"])
def test_replaced_file(sdnext: Keeper, diffusers: bool) -> None:
    """SD.Next keeps what it has read by the LoRA's name, with LibGuard or without; that is said."""
    host, name = started(sdnext), f"replaced-{diffusers}"
    shutil.copy(lora(host, "teal"), lora(host, name))
    assert host.post("/sdapi/v1/refresh-loras").status == 200
    afresh(host)
    with options(host, {"lora_force_diffusers": diffusers}, DEFAULTS):
        # A native Network knows when its file was read; of an adapter only LibGuard does.
        old = host.generate("txt2img", tagged(f"{name}:1"), ON if diffusers else OFF).pictures
        shutil.copy(lora(host, "wine"), lora(host, name))
        mark = host.mark()
        new = host.generate("txt2img", tagged(f"{name}:1"), ON).pictures
        assert same(old, new), "SD.Next reads it again by now"
        assert sum("LG307" in line for line in host.said(mark)) == 1, host.said(mark)
    afresh(host)


# The diffusers method puts layers around the model's own.


@pytest.mark.parametrize("row_id", ["L13-S-back"])
def test_back_to_native(sdnext: Keeper, row_id: str) -> None:
    """What it leaves around the layers, switched off, keeps native LoRAs out until the model is loaded again."""
    host = started(sdnext)
    result = TABLE.add(host, Result(row_id, "A LoRA by the diffusers method, then by the native one"))
    afresh(host)
    reference = host.generate("txt2img", TEAL, OFF).pictures
    found = {}
    for scripts in (OFF, ON):
        afresh(host)
        host.options(lora_force_diffusers=True)
        host.generate("txt2img", TEAL, scripts)
        host.options(lora_force_diffusers=False)
        found[scripts is ON] = host.generate("txt2img", TEAL, scripts).pictures
    said = host.said()[-1:]
    plain = host.generate("txt2img", PLAIN, ON).pictures
    result.reference, result.without, result.with_ = map(digest, (reference, found[False], found[True]))
    afresh(host)
    assert same(found[False], plain), "the LoRA has an effect without LibGuard"
    assert same(found[True], reference), said
    result.codes, result.passed = "nothing", True


@pytest.mark.parametrize("row_id", ["Z15-S-adapter"])
def test_other_adapter(sdnext: Keeper, row_id: str) -> None:
    """An IP-Adapter FaceID brings an adapter that no request names: it stays as it is."""
    host = started(sdnext)
    afresh(host)
    plain = host.generate("txt2img", PLAIN, OFF).pictures

    def prepare() -> None:
        _prepared(host)
        host.probe("other_adapter", path=str(lora(host, "wine")))

    result = assert_silent(host, row_id, [("txt2img", PLAIN), ("txt2img", PLAIN)], prepare)
    assert result.with_ != digest(plain), "it has no effect"
    with options(host, {"lora_force_diffusers": True}, DEFAULTS):
        for body in (TEAL, PLAIN):
            after = host.generate("txt2img", body, ON).pictures
    assert result.with_ == digest([*after, *after]), "it is gone after a LoRA"
    host.probe("other_adapter", path="")
    afresh(host)


@pytest.mark.parametrize("row_id", ["L09-S-no-file"])
def test_checkpoint_gone(sdnext: Keeper, row_id: str) -> None:
    """Nothing exact is left to restore from; then the host's subtraction, at the right strengths, is what can be done,
    and it is said that this is not proven. The model is not loaded again, for there would be none."""
    host = started(sdnext)
    result = TABLE.add(host, Result(row_id, "A sweep while the checkpoint's file is gone"))
    files = sorted((host.data / "models" / SD15 / "unet").glob("*.safetensors"))
    pictures = {}
    for scripts in (OFF, ON):
        afresh(host)
        clean = host.generate("txt2img", PLAIN, scripts).pictures
        hidden = [path.rename(path.with_suffix(".gone")) for path in files]
        try:
            mark = host.mark()
            for body in (CRIMSON, HALF, PLAIN):
                pictures[scripts is ON] = host.generate("txt2img", body, scripts).pictures
        finally:
            for path in hidden:
                path.rename(path.with_suffix(".safetensors"))
    said = host.said(mark)
    afresh(host)
    off_by = {on: int(np.abs(one[0].astype(int) - clean[0]).max()) for on, one in pictures.items()}
    result.without, result.with_ = (f"{digest(pictures[on])}, off by up to {off_by[on]}" for on in (False, True))
    assert off_by[False] > 10 * off_by[True], off_by
    assert said and all("LG301" in line and "not proven" in line for line in said), said
    result.codes, result.passed = "LG301", True


# At random.

SETS: dict[str, tuple[str, ...]] = {
    "none": (),
    "teal": ("teal:1",),
    "half": ("teal:0.5",),
    "wine": ("wine:1",),
    "both": ("teal:0.7", "wine:-0.4"),
}
#: How LoRAs are applied; those by which pictures differ have keys of their own.
WAYS: dict[str, dict[str, Any]] = {
    "": {},
    "copies": {"lora_fuse_native": False},
    "text": {"lora_apply_te": True},
    "diffusers": {"lora_force_diffusers": True},
    "fused": {"lora_force_diffusers": True, "lora_fuse_diffusers": True},
    "again": {"lora_force_reload": True},
}
RAISE, INTERRUPT, NOTHING = (probe("at_step", step=1, what=what) for what in ("raise", "interrupt", "nothing"))
KINDS = ("plain", "plain", "empty", "empty", "checkpoint", "loading", "raise", "interrupt")


def way(name: str) -> Step:
    return choose(**{**DEFAULTS, **WAYS[name]})


def move(key: str, **more: Any) -> Move:
    loras, _, name = key.partition(" ")
    return Move(key, tagged(*SETS[loras], steps=1), [way(name)], **more)


def draw(chance: random.Random) -> Move:
    kind, loras, name = chance.choice(KINDS), chance.choice([*SETS]), chance.choice([*WAYS])
    key = "none" if loras == "none" else f"{loras} {name}".strip()
    if kind == "empty":
        key = "none"
    if kind in ("plain", "empty"):
        told = move(key, expected=key, empty=key == "none")
        return replace(told, name=f"{kind}, {loras} {name}", before=[way(name)])
    body, mode = tagged(*SETS[loras], steps=1), way(name)
    if kind == "checkpoint":
        there, back = choose(sd_model_checkpoint=SDXL), choose(sd_model_checkpoint=SD15)
        return Move(f"{kind}, {key}", {**body, "prompt": "a red cat"}, [mode, there], [back])
    if kind == "loading":
        interrupted = probe("interrupt_at_layer", count=chance.randint(1, 60))
        return Move(f"{kind}, {key}", body, [mode, interrupted], [probe("interrupt_at_layer", count=0)])
    return Move(f"{kind}, {key}", body, [mode, RAISE if kind == "raise" else INTERRUPT], [NOTHING])


@pytest.mark.parametrize("row_id", ["L19-S-random"])
def test_random_sequence(sdnext: Keeper, row_id: str) -> None:
    host = started(sdnext)
    keys = ["none", *(f"{loras} {name}".strip() for loras in SETS if loras != "none" for name in WAYS)]
    try:
        assert_never_wrong(host, row_id, drawn(draw), {key: move(key) for key in keys}, lambda: afresh(host))
    finally:
        afresh(host)

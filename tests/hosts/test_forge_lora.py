"""LoRAs on a running Forge: rows L03, L05, L08 and L18, files that cannot be used, healthy use, and a random sequence;
by pixels and by weights, bit for bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forge_rows import HIRES_LATENT, fresh
from harness.keeper import Host, Keeper
from harness.proof import BASE, INIT, OFF, ON, TABLE, Result, assert_silent, digest, same
from harness.sequence import Sequel, ask, assert_gone, choose, probe
from safetensors.numpy import load_file, save_file

PLAIN = str(BASE["prompt"])


def tagged(*tags: str, **more: Any) -> dict[str, Any]:
    """The basic request with these LoRAs, each `name:strength`."""
    return {**BASE, "prompt": " ".join([PLAIN, *(f"<lora:{tag}>" for tag in tags)]), **more}


RED, DISABLED = tagged("redlora:1"), tagged(disable_extra_networks=True)

WHILE_DISABLED = Sequel("L05-F-disabled", "A LoRA, then extra networks disabled", [ask(RED)], DISABLED)
AFTER_DISABLED = Sequel(
    "L05-F-plain", "A LoRA, then extra networks disabled, then a plain request", [ask(RED), ask(DISABLED)], BASE, False
)
HALF_WAY = Sequel("L08-F", "A LoRA whose merge raises half way, then none", [ask(tagged("loha21:1"))], BASE)
LATER = Sequel(
    "L08-F-later",
    "A merge that raises at its weight number 100, then none",
    [probe("fail_in", place="merge", call=100), ask(RED), probe("fail_in", place="")],
    BASE,
)
SETTING = Sequel(
    "L03-F",
    '"Add network to prompt", then None',
    [choose(sd_lora="redlora"), ask(BASE), choose(sd_lora="None")],
    BASE,
    shows=False,
)


@pytest.fixture
def host(forge: Keeper) -> Iterator[Host]:
    """The host with one more LoRA; what a row has changed is put back."""
    host = forge()
    write_loha(host)
    yield host
    host.probe("fail_in", place="")
    host.probe.at_step(0, "nothing")
    host.options(sd_lora="None")
    fresh(host)


def lora(host: Host, name: str) -> Path:
    return host.data / "models" / "Lora" / f"{name}.safetensors"


def refresh(host: Host) -> None:
    assert host.post("/sdapi/v1/refresh-loras").status == 200


def write_loha(host: Host) -> None:
    """One of Stable Diffusion 2.1's width: the first layers of the model fit it, `attn2.to_k` does not."""
    if lora(host, "loha21").exists():
        return
    red, noise, tensors = load_file(lora(host, "redlora")), np.random.default_rng(5), {}
    for layer in (name.removesuffix(".lora_up.weight") for name in red if name.endswith(".lora_up.weight")):
        if not layer.startswith("lora_unet_"):
            continue
        height, width = red[f"{layer}.lora_up.weight"].shape[0], red[f"{layer}.lora_down.weight"].shape[1]
        if layer.endswith(("attn2_to_k", "attn2_to_v")):
            width = 1024
        for part in ("hada_w1", "hada_w2"):
            tensors[f"{layer}.{part}_a"] = (0.2 * noise.standard_normal((height, 4))).astype(np.float16)
            tensors[f"{layer}.{part}_b"] = (0.2 * noise.standard_normal((4, width))).astype(np.float16)
        tensors[f"{layer}.alpha"] = np.array(4, np.float32)
    save_file(tensors, lora(host, "loha21"), metadata={"ss_base_model_version": "sd_v2"})
    refresh(host)


@pytest.mark.parametrize("row", [WHILE_DISABLED, HALF_WAY, LATER], ids=lambda row: row.id)
def test_left_in_the_weights(host: Host, row: Sequel) -> None:
    allowed = {"LG301", "LG304"} if row is HALF_WAY else {"LG301"}
    assert_gone(host, row, allowed, lambda: fresh(host))
    assert host.probe("unlike_file") == []


@pytest.mark.parametrize("row", [AFTER_DISABLED, SETTING], ids=lambda row: row.id)
def test_left_in_the_encoded_prompts(host: Host, row: Sequel) -> None:
    assert_gone(host, row, {"LG301", "LG305"}, lambda: fresh(host))


@pytest.mark.parametrize("row_id", ["L08-F-next"])
def test_next_lora_is_whole(host: Host, row_id: str) -> None:
    """A LoRA over which another was merged half way comes back whole; after a repair it goes into all its layers."""
    result = TABLE.add(host, Result(row_id, "A LoRA, one that raises half way, the first again, none"))
    references = []
    for body in (BASE, RED):
        fresh(host)
        references.append(host.generate("txt2img", body, OFF).pictures)
    plain, red = references
    loha = tagged("loha21:1")
    bodies = [RED, loha, RED, BASE, loha, BASE, RED, DISABLED, RED]
    found = {}
    for scripts in (OFF, ON):
        fresh(host)
        found[scripts is ON] = [host.generate("txt2img", body, scripts).pictures for body in bodies]
    without, with_ = found[False], found[True]
    result.without, result.with_, result.reference = digest(without[2]), digest(with_[2]), digest(red)
    assert not same(without[2], red) and not same(without[5], plain) and not same(without[7], plain)
    expected = {0: red, 2: red, 3: plain, 5: plain, 6: red, 7: plain, 8: red}
    assert [number for number, one in expected.items() if not same(with_[number], one)] == []
    result.codes, result.passed = "LG301", True


@pytest.mark.parametrize("row_id", ["L08-F-unseen"])
def test_before_the_first_look(host: Host, row_id: str) -> None:
    """What was merged while LibGuard was off is not taken for the checkpoint."""
    result = TABLE.add(host, Result(row_id, "The same while LibGuard was off, on a model that it has not seen"))
    references = []
    for body in (BASE, RED):
        fresh(host)
        references.append(host.generate("txt2img", body, OFF).pictures)
    plain, red = references
    for first, second, expected in ((RED, BASE, plain), (RED, RED, red), (RED, DISABLED, plain)):
        fresh(host)
        host.generate("txt2img", first, OFF)
        mark = host.mark()
        assert same(host.generate("txt2img", second, ON).pictures, expected)
        assert second is DISABLED or host.said(mark) == []
    fresh(host)
    host.generate("txt2img", tagged("loha21:1"), OFF)
    result.without = digest(host.generate("txt2img", BASE, OFF).pictures)
    with_ = host.generate("txt2img", BASE, ON).pictures
    result.with_, result.reference = digest(with_), digest(plain)
    result.codes = " ".join(entry["code"] for entry in host.probe.entries())
    assert result.without != result.reference and same(with_, plain)
    assert result.codes == "LG301" and host.probe("unlike_file") == []
    result.passed = True


# What does not get in.


@pytest.mark.parametrize("kind", [pytest.param("nowhere", id="L18-F-nowhere"), pytest.param("idle", id="L18-F-idle")])
def test_without_effect(host: Host, kind: str) -> None:
    red = load_file(lora(host, "redlora"))
    changed = {
        "nowhere": {name.replace("lora_", "lora_elsewhere_", 1): one for name, one in red.items()},
        # Forge says SHAPE MISMATCH, WEIGHT NOT MERGED of each, and goes on.
        "idle": {name.replace("lora_up.weight", "diff"): np.ones(3, np.float16) for name in red if "lora_up" in name},
    }
    save_file(changed[kind], lora(host, kind))
    refresh(host)
    result = TABLE.add(host, Result(f"L18-F-{kind}", "A LoRA that changes nothing"))
    fresh(host)
    plain = host.generate("txt2img", BASE, OFF).pictures
    without = host.generate("txt2img", tagged(f"{kind}:1"), OFF).pictures
    result.without = f"the picture without it ({digest(without)})"
    fresh(host)
    mark = host.mark()
    with_ = host.generate("txt2img", tagged(f"{kind}:1"), ON).pictures
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
    """Forge moves a damaged file away when it first reads it, and runs the request without any LoRA."""
    name, whole = f"bad-{kind}", lora(host, "redlora").read_bytes()
    found = {}
    for scripts in (OFF, ON):
        lora(host, name).write_bytes(BAD_FILES[kind](whole))
        refresh(host)
        fresh(host)
        mark = host.mark()
        found[scripts is ON] = host.generate("txt2img", tagged(f"{name}:1"), scripts)
    said = host.said(mark)
    assert found[True].status == found[False].status == 200 and same(found[True].pictures, found[False].pictures)
    assert len(said) == 1 and "LG306" in said[0] and "Traceback" not in said[0], said
    assert str(host.data) not in said[0]
    mark = host.mark()
    plain = host.generate("txt2img", BASE, ON).pictures
    assert host.said(mark) == [] and host.probe("unlike_file") == []
    fresh(host)
    assert same(plain, host.generate("txt2img", BASE, OFF).pictures)


@pytest.mark.parametrize(
    "name", ["<img src=x onerror=alert(1)>", "../../secret", "a" * 10_000], ids=["markup", "path", "long"]
)
def test_hostile_name(host: Host, name: str) -> None:
    fresh(host)
    mark = host.mark()
    body = tagged(name.replace(">", ""))
    without, with_ = (host.generate("txt2img", body, scripts) for scripts in (OFF, ON))
    said = host.said(mark)
    assert with_.status == without.status and same(with_.pictures, without.pictures)
    assert len(said) == 1 and "LG302" in said[0] and len(said[0]) < 1500, said
    assert len(json.dumps(host.probe.entries())) < 4000


def test_good_beside_bad(host: Host) -> None:
    """Forge gives up all LoRAs of a request for one that it cannot read: each is named."""
    fresh(host)
    mark = host.mark()
    with_ = host.generate("txt2img", tagged("redlora:1", "nobody:1"), ON).pictures
    said = host.said(mark)
    assert len(said) == 2 and all("LG302" in line for line in said) and "applies none" in said[0], said
    fresh(host)
    assert same(with_, host.generate("txt2img", BASE, OFF).pictures)


@pytest.mark.parametrize("row_id", ["L18-F-refused"])
def test_refused_file(host: Host, row_id: str) -> None:
    """An algorithm that Forge does not know: its console speaks of versions, and the picture comes without the LoRA."""
    result = TABLE.add(host, Result(row_id, "A LoRA of which Forge does not know more than 12 tensors", codes="LG302"))
    layers = [name.removesuffix(".lora_up.weight") for name in load_file(lora(host, "redlora")) if "lora_up" in name]
    blocks = {f"{layer}.oft_blocks": np.ones((2, 4, 4), np.float16) for layer in layers}
    save_file(blocks, lora(host, "oftstyle"))
    refresh(host)
    fresh(host)
    plain = host.generate("txt2img", BASE, OFF).pictures
    mark = host.mark()
    without = host.generate("txt2img", tagged("oftstyle:1"), OFF).pictures
    assert "LoRA version mismatch" in host.output()[mark:]
    fresh(host)
    mark = host.mark()
    with_ = host.generate("txt2img", tagged("oftstyle:1"), ON).pictures
    said = host.said(mark)
    result.without, result.with_, result.reference = map(digest, (without, with_, plain))
    assert same(without, plain) and same(with_, plain)
    assert len(said) == 1 and "LG302" in said[0] and "knows no layer for" in said[0] and "oft_blocks" in said[0], said
    result.passed = True


@pytest.mark.parametrize("row_id", ["L18-F-replaced"])
def test_replaced_file(host: Host, row_id: str) -> None:
    """Forge keeps what it has read by the file's name; it uses it on, and that is said."""
    result = TABLE.add(host, Result(row_id, "Another file put in the place of a LoRA's between two requests"))
    name, body = "replaced", tagged("replaced:1")
    found = {}
    for scripts in (OFF, ON):
        shutil.copy(lora(host, "redlora"), lora(host, name))
        refresh(host)
        fresh(host)
        host.generate("txt2img", body, scripts)
        shutil.copy(lora(host, "bluelora"), lora(host, "next"))
        mark = host.mark()
        lora(host, "next").replace(lora(host, name))
        found[scripts is ON] = host.generate("txt2img", body, scripts).pictures
        name = "again"
        body = tagged("again:1")
    said = host.said(mark)
    result.without, result.with_ = digest(found[False]), digest(found[True])
    result.codes = " ".join(entry["code"] for entry in host.probe.entries())
    fresh(host)
    red = host.generate("txt2img", RED, OFF).pictures
    assert same(found[False], red) and same(found[True], red)
    assert len(said) == 1 and "LG307" in said[0], said
    result.reference, result.passed = digest(red), True


@pytest.mark.parametrize("row_id", ["L18-F-written-over"])
@pytest.mark.parametrize("what", ["bluelora", "shorter", "damaged"])
def test_file_written_over(host: Host, row_id: str, what: str) -> None:
    """What Forge has read are the file's own bytes: beyond the end of a shorter file there are none, and reading them
    would end the process."""
    result = TABLE.add(host, Result(f"{row_id}-{what}", "A LoRA's file written over between two requests"))
    name, blue = f"over-{what}", load_file(lora(host, "bluelora"))
    shutil.copy(lora(host, "redlora"), lora(host, name))
    if what == "shorter":
        save_file({key: one for key, one in blue.items() if "down_blocks" in key}, lora(host, "shorter"))
    elif what == "damaged":
        lora(host, "damaged").write_bytes(b"nothing")
    refresh(host)
    fresh(host)
    expected = BASE if what == "damaged" else tagged(f"{what}:1")
    reference = host.generate("txt2img", expected, OFF).pictures
    fresh(host)
    before = host.generate("txt2img", tagged(f"{name}:1"), ON).pictures
    shutil.copy(lora(host, what), lora(host, name))
    after = host.generate("txt2img", tagged(f"{name}:1"), ON).pictures
    result.with_, result.reference = digest(after), digest(reference)
    assert not same(before, reference) and same(after, reference)
    assert same(host.generate("txt2img", BASE, ON).pictures, host.generate("txt2img", BASE, ON).pictures)
    assert host.probe("unlike_file") == []
    result.passed = True


# Healthy use.

HR_OTHER = {**HIRES_LATENT, "prompt": RED["prompt"], "hr_prompt": f"{PLAIN} <lora:bluelora:0.5>"}
HR_NONE = {**HIRES_LATENT, "prompt": RED["prompt"], "hr_prompt": PLAIN}
OTHER_CHECKPOINT = {"override_settings": {"sd_model_checkpoint": "othersd15.safetensors"}}

HEALTHY: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "Z06-F-strengths": [
        ("txt2img", tagged(tag)) for tag in ("redlora:1", "redlora:0.5", "redlora:0", "redlora:te=0:unet=1")
    ],
    "Z07-F-to-and-fro": [
        ("txt2img", body) for body in (BASE, RED, BASE, tagged("redlora:1", "bluelora:0.5"), RED, RED, BASE, BASE)
    ],
    "Z02-F-loras": [("txt2img", {**HIRES_LATENT, "prompt": RED["prompt"]}), ("txt2img", BASE)],
    "Z02-F-other-loras": [("txt2img", body) for body in (HR_OTHER, HR_NONE, BASE, HR_OTHER)],
    "Z05-F-loras": [("txt2img", tagged("redlora:1", batch_size=2, n_iter=2)), ("txt2img", BASE)],
    "Z13-F-loras": [("txt2img", body) for body in (RED, tagged("redlora:1", **OTHER_CHECKPOINT), BASE, RED)],
    "Z03-F-loras": [("img2img", {**RED, **INIT}), ("img2img", {**BASE, **INIT})],
}


@pytest.mark.parametrize("row", HEALTHY)
def test_healthy(host: Host, row: str) -> None:
    assert_silent(host, row, HEALTHY[row], lambda: fresh(host))


@pytest.mark.parametrize("row", ["Z12-F-loras"])
def test_interrupted(host: Host, row: str) -> None:
    """A LoRA, interrupted in the middle of sampling, then the same again, and none."""
    calls = [("txt2img", tagged("redlora:1", steps=4)), ("txt2img", RED), ("txt2img", BASE)]

    def prepare() -> None:
        fresh(host)
        host.probe.at_step(2, "interrupt")

    assert_silent(host, row, calls, prepare)


@pytest.mark.parametrize("row", ["Z18-F-loras-on-the-fly"])
def test_on_the_fly(forge: Keeper, row: str) -> None:
    """In float8 Forge can add a LoRA to the layers' results; its weights stay as they are."""
    host = forge(forge_unet_storage_dtype="float8-e4m3fn (fp16 LoRA)")
    fresh(host)
    plain = digest(host.generate("txt2img", BASE, OFF).pictures)
    result = assert_silent(host, row, [("txt2img", body) for body in (RED, BASE, RED)], lambda: fresh(host))
    assert result.reference != plain


# At random.

QUICK = {"steps": 1}
SETS: dict[str, tuple[str, ...]] = {
    "none": (),
    "red": ("redlora:1",),
    "half-red": ("redlora:0.5",),
    "blue": ("bluelora:1",),
    "both": ("redlora:0.7", "bluelora:-0.4"),
    "text-only": ("bluelora:te=1:unet=0",),
}
#: What the host does not make whole; there is no picture to compare with.
UNUSABLE: dict[str, tuple[str, ...]] = {
    "loha": ("loha21:1",),
    "loha-behind": ("redlora:1", "loha21:1"),
    "missing": ("redlora:1", "nobody:1"),
}
PLACES = {"merge": 120, "clone": 1, "text_encoder": 1, "unet": 1, "decode": 0}


@dataclass(frozen=True)
class Move:
    """One request of the sequence. fault: where it is made to fail, and at which call; `interrupt` ends it early."""

    loras: str
    disabled: bool = False
    fault: str = ""
    call: int = 0

    @classmethod
    def draw(cls, chance: random.Random) -> Move:
        loras = chance.choice([*SETS, *UNUSABLE])
        fault = chance.choice([*PLACES, "interrupt"]) if chance.random() < 0.35 else ""
        call = chance.randint(0, PLACES.get(fault, 0))
        return cls(loras, chance.random() < 0.2, fault, call)

    @property
    def expected(self) -> str:
        """Which set's picture it gives; empty where that cannot be told."""
        if self.fault or (self.loras in UNUSABLE and not self.disabled):
            return ""
        return "none" if self.disabled else self.loras

    def make(self, host: Host, scripts: dict[str, Any]) -> list[np.ndarray]:
        """Its pictures."""
        tags = {**SETS, **UNUSABLE}[self.loras]
        body = DISABLED if self.disabled else tagged(*tags)
        if self.fault == "interrupt":
            host.probe.at_step(0, "interrupt")
        elif self.fault:
            host.probe("fail_in", place=self.fault, call=self.call)
        pictures = host.generate("txt2img", {**body, **QUICK}, scripts).pictures
        host.probe.at_step(0, "nothing")
        host.probe("fail_in", place="")
        return pictures


def reference_of(host: Host, loras: str) -> list[np.ndarray]:
    fresh(host)
    return Move(loras).make(host, OFF)


def wrong(
    host: Host, moves: list[tuple[Move, bool]], scripts: dict[str, Any], references: dict[str, list[np.ndarray]]
) -> list[str]:
    """What went wrong, one line each. After a move with a flag comes a request without LoRAs."""
    found = []
    for number, (move, then_none) in enumerate(moves):
        pictures = move.make(host, scripts)
        if move.expected and not same(pictures, references[move.expected]):
            found.append(f"{number} {move}: {digest(pictures)}")
        if then_none:
            pictures = Move("none").make(host, scripts)
            if not same(pictures, references["none"]):
                found.append(f"{number} after {move}: {digest(pictures)}")
            found += [f"{number} after {move}: {len(names)} weights" for names in [host.probe("unlike_file")] if names]
    return found


@pytest.mark.parametrize("row_id", ["L19-F-random"])
def test_random_sequence(host: Host, row_id: str) -> None:
    """LIB_GUARD_RANDOM_STEPS of them, from the seed LIB_GUARD_RANDOM_SEED."""
    steps, seed = (
        int(os.environ.get(f"LIB_GUARD_RANDOM_{name}", default)) for name, default in (("STEPS", 200), ("SEED", 1))
    )
    chance = random.Random(seed)
    moves = [(Move.draw(chance), chance.random() < 0.5) for _ in range(steps)]
    moves.append((Move("red"), True))
    result = TABLE.add(host, Result(row_id, f"{steps} random requests, many of which fail"))
    references = {name: reference_of(host, name) for name in SETS}
    assert len({digest(pictures) for pictures in references.values()}) == len(SETS), "LoRAs have no effect"
    fresh(host)
    without = wrong(host, moves[:30], OFF, references)
    fresh(host)
    mark = host.mark()
    with_ = wrong(host, moves, ON, references)
    result.without = f"{len(without)} of the first {len(moves[:30])} are followed by wrong pictures or weights"
    result.with_ = f"{len(with_)} of {len(moves)}"
    result.reference = digest(references["none"])
    result.codes = " ".join(sorted({code for line in host.said(mark) for code in line.split() if code[:2] == "LG"}))
    assert without, "nothing goes wrong without LibGuard"
    assert not with_, "\n".join(with_)
    result.passed = True

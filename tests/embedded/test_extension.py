"""LibGuard inside the embedded host, over its HTTP API: the surfaces, the lifecycle, and what never may happen."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from demo.bench import Bench, Reply
from demo.check import OFF, ON
from demo.faults import BASE, ENCODING, FAULTS, Call, controlled, pictures, send
from lib_guard.hooks import marked
from lib_guard.settings import FIELDS

TXT2IMG = Call("txt2img", BASE)
FLOAT_VAE = {"cuda_dtype": "FP16", "no_half_vae": True}


def guarded(*args: Any) -> dict[str, Any]:
    return {"LibGuard": {"args": list(args)}}


def infotext(reply: Reply) -> str:
    return json.loads(reply.json["info"])["infotexts"][0]


def lines(capfd) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith("[LibGuard]")]


def extension(bench: Bench) -> Any:
    return bench.script_globals("LibGuard")["EXTENSION"]


def test_script_info_lists_the_switches_in_order(bench):
    info = bench.get("/sdapi/v1/script-info").json
    ours = next(entry for entry in info if entry["name"].lower() == "libguard" and not entry["is_img2img"])
    assert [argument["label"] for argument in ours["args"]] == [field.label for field in FIELDS]
    assert [argument["value"] for argument in ours["args"]] == [True, "Fix", "Auto", "Fix", "Fix", "Fix"]


@pytest.mark.parametrize(
    "args",
    [
        [],
        [True],
        [True, "fix", "auto", "more", "fix", 5],
        ["yes", 3, None],
        [{"enabled": False}],
        [True, {"precision": "off"}, ["auto"]],
        [True, float("nan"), float("inf")],
        [True, "repair", "float8"],
        [None] * 3,
        [True, "<script>alert(1)</script>" * 400],
    ],
    ids=lambda args: json.dumps(args)[:40],
)
def test_bad_arguments_are_one_line_at_most_and_the_generation_runs(bench, capfd, args):
    bench.options(**FLOAT_VAE)
    capfd.readouterr()
    reply = send(bench, TXT2IMG, guarded(*args))
    assert reply.status == 200 and pictures(reply)
    said = lines(capfd)
    assert len([line for line in said if "LG002" in line]) <= 1 and all(len(line) < 1200 for line in said)
    assert len([line for line in said if "LG101" in line]) == 1


@pytest.mark.parametrize("broken", ["nonsense", 7, None, ["Fix"], {"a": 1}, float("nan")])
def test_a_broken_setting_breaks_neither_page_nor_generation(bench, capfd, broken):
    bench.shared.opts.data["lib_guard_precision"] = broken
    try:
        bench.reload_ui()
        capfd.readouterr()
        reply = send(bench, TXT2IMG, {})
        assert reply.status == 200 and pictures(reply)
    finally:
        bench.shared.opts.data["lib_guard_precision"] = "Fix"


def test_the_infotext_carries_it_only_when_it_acted(bench):
    assert "LibGuard" not in infotext(send(bench, TXT2IMG, ON))
    bench.options(**FLOAT_VAE)
    assert "LibGuard: LG101, LibGuard precision: fix, LibGuard VAE precision: auto" in infotext(
        send(bench, TXT2IMG, ON)
    )


def test_the_users_defaults_hold_where_a_request_says_nothing(bench):
    bench.options(**FLOAT_VAE, lib_guard_enabled=False)
    bench.reload_ui()
    try:
        assert send(bench, TXT2IMG, {}).status == 500
    finally:
        bench.options(lib_guard_enabled=True)
        bench.reload_ui()
    assert send(bench, TXT2IMG, {}).status == 200


class InTheMiddle:
    """Looks at the model from inside a decode."""

    def __init__(self, bench: Bench) -> None:
        self.seen: list[list[str]] = []
        pipeline = bench.shared.sd_model
        self._parts = [part for part in pipeline.components.values() if hasattr(part, "named_modules")]
        self._handle = pipeline.vae.decoder.mid_block.register_forward_hook(self._look)

    def _look(self, *args: Any) -> None:
        self.seen.append([place for part in self._parts for place in marked(part)])

    def remove(self) -> None:
        self._handle.remove()


@pytest.mark.parametrize(
    "args",
    [
        [False],
        [True, "off", "auto", "off", "off"],
        [True, "off", "float32", "off", "off"],
        [False, "fix", "float32", "fix", "fix"],
    ],
    ids=lambda args: f"Z19-D-{args}",
)
def test_off_leaves_no_hook_on_any_module(bench, args):
    middle = InTheMiddle(bench)
    send(bench, TXT2IMG, ON)
    assert middle.seen[-1], "with the guard on there is something to see, so that seeing nothing means something"
    send(bench, TXT2IMG, guarded(*args))
    assert middle.seen[-1] == []
    middle.remove()


@pytest.mark.parametrize("ending", ["healthy", "fails in the decode", "fails in the UNet"])
def test_nothing_is_left_on_the_model_however_a_generation_ends(bench, ending):
    pipeline = bench.shared.sd_model

    def fail(*args: Any) -> None:
        raise ValueError("somebody's mistake")

    part = {"fails in the decode": pipeline.vae.decoder.mid_block, "fails in the UNet": pipeline.unet.mid_block}
    handle = part[ending].register_forward_hook(fail) if ending in part else SimpleNamespace(remove=lambda: None)
    assert send(bench, TXT2IMG, ON).status == (200 if ending == "healthy" else 500)
    handle.remove()
    assert marked(pipeline.vae) == [] and not {"encode", "decode"} & set(vars(pipeline.vae))
    assert sys.modules["lib_guard.ledger"].LEDGER.last().outcome == ("finished" if ending == "healthy" else "failed")


@pytest.mark.parametrize("where", ["begin", "note", "end"])
def test_an_error_of_ours_never_stops_a_generation(bench, capfd, monkeypatch, where):
    watches = type(extension(bench).watches)
    private = {"begin": "_begin", "note": "_note", "end": "_end_of"}[where]

    def fail(*args: Any) -> None:
        raise ValueError("a mistake of ours")

    reference = pictures(send(bench, TXT2IMG, OFF))
    with monkeypatch.context() as patch:
        patch.setattr(watches, private, fail)
        capfd.readouterr()
        reply = send(bench, TXT2IMG, ON)
    assert np.array_equal(pictures(reply)[0], reference[0])
    assert [line for line in lines(capfd) if "LG001" in line]
    send(bench, TXT2IMG, ON)
    assert marked(bench.shared.sd_model.vae) == []


def test_an_error_in_the_guard_is_said_once_and_the_next_request_has_it_again(bench, capfd, monkeypatch):
    crossing = sys.modules["lib_guard.guards.vae_crossing"]

    def fail(*args: Any) -> None:
        raise ValueError("a mistake of ours")

    reference = pictures(send(bench, Call("txt2img", {**BASE, "n_iter": 2}), OFF))
    with monkeypatch.context() as patch:
        patch.setattr(crossing.VaeCrossing, "_enter", fail)
        capfd.readouterr()
        reply = send(bench, Call("txt2img", {**BASE, "n_iter": 2}), ON)
    assert [np.array_equal(a, b) for a, b in zip(pictures(reply), reference)] == [True, True]
    assert len([line for line in lines(capfd) if "LG001 precision" in line]) == 1
    bench.options(**FLOAT_VAE)
    assert send(bench, TXT2IMG, ON).status == 200


def test_warn_says_it_and_lets_the_host_fail(bench, capfd):
    bench.options(**FLOAT_VAE)
    capfd.readouterr()
    assert send(bench, TXT2IMG, guarded(True, "warn")).status == 500
    said = lines(capfd)
    assert len(said) == 1 and "LG101" in said[0] and "left as it is" in said[0]


#: Fault -> what its line says in the host's own words.
WORDS = {
    "P13-D-sd15-fp32-in-fp16": 'The option "controlnet_dtype" loads ControlNets in FP32, the model is FP16.',
    "N01-D-decode": 'Permanent fix: Settings > "no_half_vae" on, or "cuda_dtype" BF16.',
    "N02-D-step": 'Permanent fix: Settings > "cuda_dtype" BF16 or FP32, or a lower strength of the LoRAs.',
    "N02-D-file": 'LoRA "tiny-overflown": ',
    "P10-D-bf16": "the text encoder is bfloat16 with text_projection in float16 (1 tensor)",
}


@pytest.mark.parametrize("name", WORDS)
def test_the_line_speaks_the_hosts_words(bench, capfd, name):
    fault = next(fault for fault in FAULTS if fault.id == name)
    fault.provoke(bench)
    capfd.readouterr()
    try:
        assert fault.run(bench, ON).status == 200
    finally:
        fault.heal(bench)
    (said,) = lines(capfd)
    assert WORDS[name] in said


def test_a_component_that_comes_in_mid_generation_is_guarded_and_let_go(bench):
    call = controlled("tiny-sd15-controlnet")
    bench.post("/sdapi/v1/reload-checkpoint")
    seen: list[list[str]] = []
    controlnet = sys.modules["modules.controlnet"]
    load = controlnet.load

    def load_and_look(*args: Any) -> None:
        load(*args)
        for one in bench.sd_models.model_data.controlnets.values():
            one.register_forward_hook(lambda module, *rest: seen.append(marked(module)))

    controlnet.load = load_and_look
    try:
        assert send(bench, call, ON).status == 200
    finally:
        controlnet.load = load
    assert seen and all(seen)
    (loaded,) = bench.sd_models.model_data.controlnets.values()
    assert marked(loaded) == [] and marked(controlnet) == []


def test_a_cause_is_said_once_a_generation(bench, capfd):
    bench.options(**FLOAT_VAE)
    capfd.readouterr()
    assert send(bench, Call("txt2img", {**BASE, "n_iter": 3}), ON).status == 200
    assert len(lines(capfd)) == 1
    assert sys.modules["lib_guard.ledger"].LEDGER.last().entries[0].count == 3


@pytest.mark.parametrize("chosen", ["float32", "bfloat16"])
def test_the_chosen_vae_precision_changes_the_picture_and_not_the_vae(bench, chosen):
    bench.options(cuda_dtype="FP16", no_half_vae=False)
    call = ENCODING["img2img"]
    plain = pictures(send(bench, call, ON))[0]
    reply = send(bench, call, guarded(True, "fix", chosen))
    chosen_picture = pictures(reply)[0]
    assert f"LibGuard VAE precision: {chosen}" in infotext(reply)
    assert not np.array_equal(plain, chosen_picture)
    gap = np.abs(plain.astype(int) - chosen_picture.astype(int)).mean()
    assert gap < 8 and {p.dtype for p in bench.shared.sd_model.vae.parameters()} == {bench.shared.sd_model.unet.dtype}


def test_reloading_the_ui_leaves_nothing_of_the_old_code(bench):
    before = extension(bench)
    bench.reload_ui()
    assert extension(bench) is not before
    bench.options(**FLOAT_VAE)
    assert send(bench, TXT2IMG, ON).status == 200 and marked(bench.shared.sd_model.vae) == []

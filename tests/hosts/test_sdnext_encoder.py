"""Rows E01-E06 on SD.Next, whose adapters and encoders lie on disk as if they had been fetched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.keeper import Host, Keeper
from harness.proof import BASE, INIT, OFF, ON, TABLE, Result, Row, assert_cured, assert_silent, digest, fresh, same
from models.sdnext import HUB, WITH_ENCODER
from sdnext_rows import HIRES_PIXEL, REFINED, REFINER, SD15, SDXL, options, select

#: ViT-bigG, in either of the caches: diffusers', and the one of SD.Next's settings in its data folder.
_BIGG = Path("models--h94--IP-Adapter", "snapshots", "0" * 40, "sdxl_models", "image_encoder")
#: What the pipeline says when an encoder is of another family; or the resampler of a plus adapter.
_LOST = r"mat1 and mat2 shapes cannot be multiplied"


@pytest.fixture(scope="module")
def adapters(sdnext: Keeper) -> Iterator[Keeper]:
    """SD.Next that finds IP-Adapters as if it had fetched them: diffusers looks for them where the Hub's client did
    when it was imported, which is before SD.Next tells it another place (models_hf.py:19)."""
    sdnext.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_CACHE", str(HUB))
        yield sdnext
    sdnext.close()


def adapted(*names: str, body: dict[str, Any] = BASE) -> dict[str, Any]:
    """A request with adapters, all for one picture."""
    return {**body, "ip_adapter": [{"adapter": name, "images": INIT["init_images"], "scale": 0.8} for name in names]}


def started(adapters: Keeper, checkpoint: str = SD15, **settings: Any) -> Host:
    return select(adapters(**settings), checkpoint)


def alone(host: Host, body: dict[str, Any], endpoint: str = "txt2img") -> list[np.ndarray]:
    """The picture of a request that comes first, without LibGuard."""
    fresh(host)
    return host.generate(endpoint, body, OFF).pictures


def entries_since(host: Host, number: int) -> list[dict[str, Any]]:
    return [entry for generation in host.probe.since(number) for entry in generation["entries"]]


SWITCHES = {"E01-S": ("Base", "Base ViT-G", "Base"), "E01-S-plus": ("Plus", "Base ViT-G", "Plus")}


@pytest.mark.parametrize("row_id", SWITCHES)
def test_switch(adapters: Keeper, row_id: str) -> None:
    """SD.Next loads the other encoder itself, beside the one that is there: both are in memory at once."""
    host, names = started(adapters), SWITCHES[row_id]
    result = TABLE.add(host, Result(row_id, f"{', '.join(names)}: encoders in memory when one is loaded"))
    passes = {}
    for scripts in (OFF, ON):
        fresh(host)
        host.probe("encoders_in_memory", on=True)
        number, mark = host.probe.generation(), host.mark()
        found = [host.generate("txt2img", adapted(name), scripts).pictures for name in names]
        passes[scripts is ON] = found, host.probe("encoders_in_memory", on=False)
    said, entries = host.said(mark), entries_since(host, number)
    (without, at_once), (with_, one_by_one) = passes[False], passes[True]
    result.without, result.with_ = (
        f"{at_once}",
        f"{one_by_one} {digest([one for pictures in with_ for one in pictures])}",
    )
    result.codes, result.reference = "LG401", digest([one for pictures in without for one in pictures])
    assert max(at_once) == 1, "SD.Next has unloaded it by itself, so this proves nothing"
    assert one_by_one == [0, 0, 0]
    assert all(map(same, with_, without)), "SD.Next's own pictures of the same requests"
    assert [entry["code"] for entry in entries] == ["LG401", "LG401"]
    assert all("MB freed" in entry["did"] and entry["proof"] for entry in entries), entries
    assert len(said) == 2 and host.probe.marks() == []
    assert not same(with_[0], with_[1])
    result.passed = True


@pytest.mark.parametrize("row_id", ["E01-S-process"])
def test_as_in_a_fresh_process(adapters: Keeper, row_id: str) -> None:
    """What follows other adapters is, bit for bit, the picture that a process gives which has seen no other."""
    host = started(adapters)
    result = TABLE.add(host, Result(row_id, "Adapters in turn, and each as the first of a process", codes="LG401"))
    adapted_ = [adapted(name) for name in ("Base ViT-G", "Base", "Plus")]
    fresh(host)
    for body in reversed(adapted_):
        host.generate("txt2img", body, ON)
    with_ = [host.generate("txt2img", body, ON).pictures for body in adapted_]
    reference = []
    for body in adapted_:
        host.stop()
        host.start()
        reference.append(select(host, SD15).generate("txt2img", body, OFF).pictures)
    result.with_, result.reference = (
        digest([one for pictures in run for one in pictures]) for run in (with_, reference)
    )
    assert all(reference) and all(map(same, with_, reference)), (list(map(digest, with_)), list(map(digest, reference)))
    result.passed = True


SEVERAL = {
    "E02-S-H-G": ("Base", "Base ViT-G"),
    "E02-S-G-H": ("Base ViT-G", "Base"),
    "E02-S-plus-G": ("Plus", "Base ViT-G"),
    "E02-S-three": ("Base", "Base ViT-G", "Plus"),
}


@pytest.mark.parametrize("row_id", SEVERAL)
@pytest.mark.parametrize("dtype", ["FP32", "FP16"])
def test_several(adapters: Keeper, row_id: str, dtype: str) -> None:
    if dtype == "FP16" and row_id != "E02-S-H-G":
        pytest.skip("one pair in half precision suffices")
    host = started(adapters, cuda_dtype=dtype)
    name = row_id if dtype == "FP32" else f"{row_id}-fp16"
    names = SEVERAL[row_id]
    row = Row(name, f"{', '.join(names)} at once", "txt2img", adapted(*names), healthy="own_encoders", error=_LOST)
    assert_cured(host, row, {"LG403"})


@pytest.mark.parametrize("row_id", ["E02-S-unguided"])
def test_several_without_guidance(adapters: Keeper, row_id: str) -> None:
    host, body = started(adapters), adapted("Base", "Base ViT-G", body={**BASE, "cfg_scale": 1.0})
    row = Row(row_id, "Two families at once, no guidance", "txt2img", body, healthy="own_encoders", error=_LOST)
    assert_cured(host, row, {"LG403"})


@pytest.mark.parametrize("row_id", ["E02-S-passes"])
def test_several_in_other_passes(adapters: Keeper, row_id: str) -> None:
    """Hires and img2img: other pipelines of the same model. Each shows both adapters."""
    host = started(adapters)
    for endpoint, body in (("txt2img", HIRES_PIXEL), ("img2img", {**BASE, **INIT})):
        fresh(host)
        assert host.generate(endpoint, adapted("Base", "Base ViT-G", body=body), OFF).pictures == []
        fresh(host)
        both, again = (host.generate(endpoint, adapted("Base", "Base ViT-G", body=body), ON).pictures for _ in range(2))
        assert both and same(both, again)
        assert [entry["code"] for entry in host.probe.entries()] == ["LG403"]
        for one in ("Base", "Base ViT-G"):
            assert not same(both, alone(host, adapted(one, body=body), endpoint))


@contextmanager
def without_bigg(host: Host) -> Iterator[None]:
    """With ViT-bigG not on disk for a while."""
    places = [cache / _BIGG for cache in (HUB, host.data / "models" / "huggingface")]
    aside = [place.with_name("aside") for place in places]
    for place, other in zip(places, aside):
        shutil.move(place, other)
    try:
        yield
    finally:
        for place, other in zip(places, aside):
            shutil.move(other, place)


@pytest.mark.parametrize("row_id", ["E02-S-missing"])
def test_left_out(adapters: Keeper, row_id: str) -> None:
    """An encoder that is not on disk: its adapter is left out and named, on the console and under the picture."""
    host, body = started(adapters), adapted("Base", "Base ViT-G")
    result = TABLE.add(host, Result(row_id, "Base and Base ViT-G, whose encoder is not on disk", codes="LG405"))
    reference = alone(host, adapted("Base"))
    with without_bigg(host):
        fresh(host)
        without = host.generate("txt2img", body, OFF).pictures
        fresh(host)
        mark = host.mark()
        answer = host.generate("txt2img", body, ON)
    result.without, result.with_, result.reference = map(digest, (without, answer.pictures, reference))
    assert without == [] or not same(without, reference), "nothing is lost without LibGuard"
    assert same(answer.pictures, reference)
    (entry,) = host.probe.entries()
    assert entry["code"] == "LG405" and "Base ViT-G" in entry["saw"] and "ViT-bigG" in entry["saw"]
    (line,) = host.said(mark)
    assert "LG405" in line and host.probe.marks() == []
    result.passed = True


@pytest.mark.parametrize("row_id", ["E05-S-missing"])
def test_the_only_one_is_missing(adapters: Keeper, row_id: str) -> None:
    """SD.Next goes on without the adapter, and only its log says so."""
    host, body = started(adapters), adapted("Base ViT-G")
    result = TABLE.add(host, Result(row_id, "Base, then Base ViT-G, whose encoder is not on disk", codes="LG405"))
    right, plain = alone(host, body), alone(host, BASE)
    with without_bigg(host):
        without = alone(host, body)
        host.generate("txt2img", adapted("Base"), ON)
        mark = host.mark()
        with_ = host.generate("txt2img", body, ON).pictures
        entries = host.probe.entries()
    result.without, result.with_, result.reference = map(digest, (without, with_, plain))
    assert not same(without, right) and same(without, plain), "the adapter is not lost without LibGuard"
    assert same(with_, plain) and [entry["code"] for entry in entries] == ["LG401", "LG405", "LG410"], entries
    assert any("LG405" in line and "Base ViT-G" in line for line in host.said(mark)) and host.probe.marks() == []
    result.passed = True


@pytest.mark.parametrize("dtype", ["FP32", "FP16"], ids=["E04-S-attention", "E04-S-attention-fp16"])
def test_attention_afterwards(adapters: Keeper, request: pytest.FixtureRequest, dtype: str) -> None:
    """SD.Next takes a single adapter out, and leaves another attention than was chosen: for as long as it runs."""
    host = started(adapters, cuda_dtype=dtype)
    result = TABLE.add(host, Result(request.node.callspec.id, "An adapter, then none: txt2img, img2img, hires"))
    plain = [("txt2img", BASE), ("img2img", {**BASE, **INIT}), ("txt2img", HIRES_PIXEL)]

    def run(scripts: dict[str, Any], *before: dict[str, Any]) -> list[np.ndarray]:
        fresh(host)
        for body in before:
            host.generate("txt2img", body, scripts)
        return [one for endpoint, body in plain for one in host.generate(endpoint, body, scripts).pictures]

    reference, without = run(OFF), run(OFF, adapted("Base"))
    number, mark = host.probe.generation(), host.mark()
    with_ = run(ON, adapted("Base"))
    codes = [[entry["code"] for entry in generation["entries"]] for generation in host.probe.since(number)]
    result.without, result.with_, result.reference = map(digest, (without, with_, reference))
    result.codes = "LG410"
    assert not same(without, reference), "the attention is put back without LibGuard"
    assert same(with_, reference) and codes == [[], ["LG410"], [], []], codes
    assert len(host.said(mark)) == 1 and host.probe.marks() == []
    result.passed = True


@pytest.mark.parametrize("row_id", ["E04-S-chosen"])
def test_attention_that_was_chosen_afterwards(adapters: Keeper, row_id: str) -> None:
    """It is the user's, and stays."""
    host = started(adapters)
    result = TABLE.add(host, Result(row_id, "An adapter, then plain attention by setting, then none"))
    found, setting = {}, "cross_attention_optimization"
    for scripts in (OFF, ON):
        fresh(host)
        host.generate("txt2img", adapted("Base"), scripts)
        with options(host, {setting: "Batch matrix-matrix"}, {setting: "Scaled-Dot-Product"}):
            found[scripts is ON] = host.generate("txt2img", BASE, scripts).pictures
            assert scripts is OFF or host.probe.entries() == []
    result.without, result.with_, result.reference = digest(found[False]), digest(found[True]), digest(found[False])
    assert found[True] and same(found[True], found[False])
    result.codes, result.passed = "nothing", True


@pytest.mark.parametrize("row_id", ["E04-S-no-list"])
def test_no_list(adapters: Keeper, row_id: str) -> None:
    """As the second pass of an extension that makes its request by itself."""
    host, body = started(adapters), {**BASE, "extra": {"ip_adapter_names": None}}
    result = TABLE.add(host, Result(row_id, "Nothing where the list of adapters should be", codes="LG409"))
    plain = alone(host, BASE)
    fresh(host)
    without = host.generate("txt2img", body, OFF)
    fresh(host)
    mark = host.mark()
    with_ = host.generate("txt2img", body, ON).pictures
    entries = host.probe.entries()
    result.without, result.with_, result.reference = f"HTTP {without.status}", digest(with_), digest(plain)
    assert without.pictures == [] and "'NoneType' object is not iterable" in host.output()
    assert same(with_, plain) and [entry["code"] for entry in entries] == ["LG409"] and entries[0]["proof"]
    assert len(host.said(mark)) == 1 and host.probe.marks() == []
    result.passed = True


@pytest.mark.parametrize("row_id", ["E03-S"])
def test_brought_along(adapters: Keeper, row_id: str) -> None:
    host = started(adapters)

    def provoke() -> None:
        host.options(sd_model_checkpoint=SD15)
        fresh(host)
        host.generate("txt2img", adapted("Base"), OFF)
        host.options(sd_model_checkpoint=f"Diffusers/{WITH_ENCODER}")

    title = "Base, then a checkpoint that brings an encoder of another family, Base"
    row = Row(row_id, title, "txt2img", adapted("Base"), healthy="own_encoders", error=_LOST)
    try:
        assert_cured(host, row, {"LG401"}, provoke)
    finally:
        host.options(sd_model_checkpoint=SD15)


LEFT = {"E04-S": ("Base", "Light"), "E04-S-families": ("Base", "Base ViT-G"), "E04-S-order": ("Base ViT-G", "Light")}


@pytest.mark.parametrize("row_id", LEFT)
def test_left_behind(adapters: Keeper, row_id: str) -> None:
    """Without LibGuard every plain request fails from then on."""
    host = started(adapters)
    result = TABLE.add(host, Result(row_id, f"{' and '.join(LEFT[row_id])} at once, then none"))
    plain = alone(host, BASE)
    fresh(host)
    host.generate("txt2img", adapted(*LEFT[row_id]), OFF)
    mark = host.mark()
    for _ in range(2):
        answer = host.generate("txt2img", BASE, OFF)
        assert answer.pictures == [], "it does not fail without LibGuard"
    result.without = f"HTTP {answer.status}: argument of type 'NoneType' is not iterable, for ever"
    assert "NoneType" in host.output()[mark:]

    number = host.probe.generation()
    healed = host.generate("txt2img", BASE, ON).pictures
    assert same(healed, plain), "what came before LibGuard was on"
    assert [entry["code"] for entry in entries_since(host, number)] == ["LG404"]

    fresh(host)
    host.generate("txt2img", adapted(*LEFT[row_id]), ON)
    number = host.probe.generation()
    found = [host.generate("txt2img", BASE, ON).pictures for _ in range(2)]
    result.with_, result.reference, result.codes = digest(found[0]), digest(plain), "LG404"
    assert same(found[0], plain) and same(found[1], plain)
    (entry,) = entries_since(host, number)
    assert entry["code"] == "LG404" and entry["proof"] and host.probe.marks() == []
    assert host.generate("txt2img", adapted("Base"), ON).pictures
    assert all(entry["code"] == "LG401" for entry in host.probe.entries())
    result.passed = True


@pytest.mark.parametrize("row_id", ["E05-S-renamed"])
def test_renamed(adapters: Keeper, row_id: str) -> None:
    """What SD.Next calls Full Face holds an adapter of ViT-bigG here."""
    row = Row(row_id, "A file of another family", "txt2img", adapted("Full Face"), healthy="own_encoders", error=_LOST)
    assert_cured(started(adapters), row, {"LG401"})


@pytest.mark.parametrize("row_id", ["E06-S"])
def test_same_family(adapters: Keeper, row_id: str) -> None:
    """The encoder stays the same object."""
    host = started(adapters)
    calls = [("txt2img", adapted(name)) for name in ("Base", "Light", "Plus", "Base")]
    assert_silent(host, row_id, calls, lambda: fresh(host))
    first = host.probe("encoder_identity")
    for _, body in calls:
        assert host.generate("txt2img", body, ON).pictures
        assert host.probe("encoder_identity") == first != 0


@pytest.mark.parametrize("row_id", ["E04-S-refiner"])
def test_pass_without_adapter(adapters: Keeper, row_id: str) -> None:
    """The refiner's pipeline is handed the image, and has neither adapter nor encoder (SD.Next #4066)."""
    host = started(adapters, SDXL)
    with options(host, {"sd_model_refiner": REFINER}, {"sd_model_refiner": "None"}):
        row = Row(
            row_id,
            "An IP-Adapter and a refiner",
            "txt2img",
            adapted("Base SDXL", body=REFINED),
            healthy="images_for_adapters_only",
            error="image_projection_layers",
        )
        assert_cured(host, row, {"LG408"})
        both = host.generate("txt2img", row.body, ON).pictures
        assert not same(both, host.generate("txt2img", REFINED, ON).pictures), "the adapter did nothing"


@pytest.mark.parametrize("row_id", ["E03-S-warn"])
def test_policy_warn(adapters: Keeper, row_id: str) -> None:
    """It says what is wrong, and nothing else happens."""
    host = started(adapters)
    host.generate("txt2img", adapted("Base"), OFF)
    host.options(sd_model_checkpoint=f"Diffusers/{WITH_ENCODER}")
    try:
        warn = {"LibGuard": {"args": [True, "fix", "auto", "fix", "fix", "warn"]}}
        assert host.generate("txt2img", adapted("Base"), warn).pictures == []
        (entry,) = host.probe.entries()
        assert (entry["code"], entry["did"]) == ("LG401", None)
    finally:
        host.options(sd_model_checkpoint=SD15)

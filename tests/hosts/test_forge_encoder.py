"""IP-Adapters and their image encoders on a running Forge: rows E05, E06 and Z15, by pixels.

The adapters and the encoders' widths are of the real sizes; a stand-in has the encoders built with two layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forge_rows import HIRES_PIXEL, seeded
from harness.keeper import Host, Keeper
from harness.proof import BASE, INIT, OFF, ON, TABLE, TITLE, Result, assert_silent, digest, same
from safetensors.numpy import save_file

SMALL_VISION = Path(__file__).resolve().parent / "standins" / "smallvision"

H, BIGG = "CLIP-ViT-H (IPAdapter)", "CLIP-ViT-bigG (IPAdapter)"
#: The encoders' files by the preprocessor that looks for them.
FILES = {H: "CLIP-ViT-H-14.safetensors", BIGG: "CLIP-ViT-bigG.safetensors"}
SPOKEN = {H: "OpenCLIP ViT-H", BIGG: "OpenCLIP ViT-bigG"}

BASE_H, BASE_BIGG, PLUS = "ip-adapter_sd15", "ip-adapter_sd15_vit-G", "ip-adapter-plus_sd15"
#: What each adapter was made for.
RIGHT = {BASE_H: H, BASE_BIGG: BIGG, PLUS: H}
WRONG = {BASE_H: BIGG, BASE_BIGG: H, PLUS: BIGG}

REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "txt2img": ("txt2img", BASE),
    "img2img": ("img2img", {**BASE, **INIT}),
    "hires": ("txt2img", HIRES_PIXEL),
}

WARN: dict[str, Any] = {TITLE: {"args": [True, "fix", "auto", "fix", "fix", "warn"]}}
NOT_LOOKED_AT: dict[str, Any] = {TITLE: {"args": [True, "fix", "auto", "fix", "fix", "off"]}}

#: Without LibGuard: lib_ipadapter/IPAdapterPlus.py:295.
MISMATCH = "size mismatch for proj"


@pytest.fixture
def host(forge: Keeper) -> Iterator[Host]:
    """The host with no encoder loaded; files that a row has moved are put back."""
    host = forge(extensions=(SMALL_VISION,))
    files = {path: path.resolve() for path in folder(host).glob("*.safetensors")}
    fresh(host)
    yield host
    for path in folder(host).glob("*.safetensors"):
        path.unlink()
    for path, source in files.items():
        path.symlink_to(source)
    host.probe.at_step(0, "nothing")
    host.probe("seed_encode", on=False)
    host.probe("watch_units", on=False)
    host.probe("comments", on=False)


def folder(host: Host) -> Path:
    return host.data / "models" / "ControlNetPreprocessor"


def fresh(host: Host) -> None:
    """As in a process that has just started, as far as image encoders and noise go."""
    host.probe("forget_encoders")
    seeded(host)


def listed(host: Host, name: str) -> str:
    """A model's name as the host lists it, with its hash."""
    return next(one for one in host.probe("find_adapters") if one.split(" [")[0] == name)


def with_units(host: Host, body: dict[str, Any], *pairs: tuple[str, str]) -> dict[str, Any]:
    """A request with a unit for each preprocessor and adapter."""
    picture = INIT["init_images"][0]
    units = [
        {"enabled": True, "image": picture, "module": module, "model": listed(host, name), "save_detected_map": False}
        for module, name in pairs
    ]
    return {**body, "alwayson_scripts": {"ControlNet": {"args": units}}}


def ask(host: Host, endpoint: str, body: dict[str, Any], scripts: dict[str, Any]) -> list[np.ndarray]:
    """A request's pictures, whatever noise was drawn before it."""
    seeded(host)
    answer = host.generate(endpoint, body, scripts)
    assert answer.status == 200, answer.text[:2000]
    assert answer.pictures, host.tail()
    return answer.pictures


def told(host: Host, mark: int) -> list[str]:
    """LibGuard's lines since a mark, without those of a start."""
    return [line for line in host.said(mark) if " LG" in line]


def left_alone(host: Host) -> bool:
    return host.probe.marks() == [] and host.probe("unit_marks") == []


# E05: a preprocessor of the wrong family.


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("name", WRONG, ids=lambda name: f"E05-F-{name}")
def test_wrong_pair(host: Host, name: str, kind: str) -> None:
    endpoint, body = REQUESTS[kind]
    right, wrong = (with_units(host, body, (modules[name], name)) for modules in (RIGHT, WRONG))
    title = f'{endpoint}, adapter "{name}" with "{WRONG[name]}"'
    result = TABLE.add(host, Result(f"E05-F-{name}-{kind}", title))
    host.generate("txt2img", BASE, OFF)  # for the model to be there
    host.probe("seed_encode", on=True)
    plain = ask(host, endpoint, body, OFF)
    reference = ask(host, endpoint, right, OFF)
    result.reference = digest(reference)

    fresh(host)
    mark = host.mark()
    without = ask(host, endpoint, wrong, OFF)
    result.without = f"HTTP 200, {digest(without)}: without the adapter"
    raised = MISMATCH in host.output()[mark:]

    fresh(host)
    mark = host.mark()
    answer = host.generate(endpoint, wrong, ON)
    said, entries = told(host, mark), host.probe.entries()
    result.with_, result.codes = digest(answer.pictures), " ".join(entry["code"] for entry in entries)
    result.milliseconds = sum(entry["milliseconds"] for entry in entries)

    assert not same(reference, plain), "the adapter has no effect, so it proves nothing"
    assert same(without, plain) and raised, "it does not fail without LibGuard"
    assert same(answer.pictures, reference), f"{result.with_} with LibGuard, {result.reference} of the right pair"
    assert [entry["code"] for entry in entries] == ["LG402"] and entries[0]["did"], entries
    assert len(said) == 1 and name in said[0] and f'"{RIGHT[name]}" is used' in said[0], said
    assert list(host.probe("encoders")["loaded"]) == [FILES[RIGHT[name]]], "the wrong encoder was loaded as well"
    assert f"Module: {RIGHT[name]}" in answer.infotext and WRONG[name] not in answer.infotext
    assert left_alone(host)
    result.passed = True


@pytest.mark.parametrize("row_id", ["E05-F-fresh"])
def test_wrong_pair_is_the_first_request(host: Host, row_id: str) -> None:
    """Each picture is the first one of a process."""
    result = TABLE.add(host, Result(row_id, "A wrong pair as the first request after the start"))
    found = []
    for modules, scripts in ((RIGHT, OFF), (WRONG, ON)):
        host.stop()
        host.start()
        found.append(host.generate("txt2img", with_units(host, BASE, (modules[BASE_H], BASE_H)), scripts).pictures)
    reference, with_ = found
    result.reference, result.with_ = digest(reference), digest(with_)
    result.codes = " ".join(entry["code"] for entry in host.probe.entries())
    assert reference and same(with_, reference) and result.codes == "LG402"
    result.passed = True


@pytest.mark.parametrize("row_id", ["E05-F-absent"])
def test_encoder_is_not_on_disk(host: Host, row_id: str) -> None:
    """It is said, on the console and under the picture, and nothing is downloaded."""
    result = TABLE.add(host, Result(row_id, "The encoder that an adapter needs is not on disk"))
    wrong = with_units(host, BASE, (BIGG, BASE_H))
    (folder(host) / FILES[H]).unlink()
    before = sorted(path.name for path in folder(host).iterdir())
    without = ask(host, "txt2img", wrong, OFF)
    fresh(host)
    host.probe("comments", on=True)
    mark = host.mark()
    with_ = ask(host, "txt2img", wrong, ON)
    said, entries, comments = told(host, mark), host.probe.entries(), host.probe("comments", on=False)
    result.without, result.with_ = digest(without), digest(with_)
    result.codes = " ".join(entry["code"] for entry in entries)
    assert same(with_, without)
    assert [entry["code"] for entry in entries] == ["LG405"] and not entries[0]["did"], entries
    assert len(said) == 1 and "LG405" in said[0] and SPOKEN[H] in said[0], said
    assert len(comments) == 1 and comments[0].startswith("LibGuard LG405") and SPOKEN[H] in comments[0], comments
    assert sorted(path.name for path in folder(host).iterdir()) == before, "something was downloaded"
    assert "Downloading" not in host.output()[mark:]
    assert left_alone(host)
    result.passed = True


@pytest.mark.parametrize("row_id", ["E05-F-two-absent"])
def test_encoder_of_one_of_two_is_not_on_disk(host: Host, row_id: str) -> None:
    """Its unit is left out, and the other one works."""
    result = TABLE.add(host, Result(row_id, "Two units, and one's encoder is not on disk"))
    reference = ask(host, "txt2img", with_units(host, BASE, (H, BASE_H)), OFF)
    wrong = with_units(host, BASE, (H, BASE_BIGG), (H, BASE_H))
    (folder(host) / FILES[BIGG]).unlink()
    fresh(host)
    without = ask(host, "txt2img", wrong, OFF)
    fresh(host)
    mark = host.mark()
    with_ = ask(host, "txt2img", wrong, ON)
    said = told(host, mark)
    result.without, result.with_, result.reference = digest(without), digest(with_), digest(reference)
    result.codes = " ".join(entry["code"] for entry in host.probe.entries())
    assert not same(without[:1], reference[:1]), "the right unit works without LibGuard, so this proves nothing"
    assert same(with_, reference)
    assert result.codes == "LG405" and len(said) == 1 and BASE_BIGG in said[0], said
    result.passed = True


@pytest.mark.parametrize("row_id", ["E05-F-chosen-absent"])
def test_chosen_encoder_is_not_on_disk(host: Host, row_id: str) -> None:
    """Without LibGuard the host would download the wrong one, here from nowhere."""
    result = TABLE.add(host, Result(row_id, "A preprocessor of the wrong family, whose encoder is not on disk"))
    reference = ask(host, "txt2img", with_units(host, BASE, (H, BASE_H)), OFF)
    plain = ask(host, "txt2img", BASE, OFF)
    fresh(host)
    (folder(host) / FILES[BIGG]).unlink()
    wrong = with_units(host, BASE, (BIGG, BASE_H))
    mark = host.mark()
    without = ask(host, "txt2img", wrong, OFF)
    tried = "Downloading" in host.output()[mark:]
    fresh(host)
    mark = host.mark()
    with_ = ask(host, "txt2img", wrong, ON)
    result.without, result.with_, result.reference = digest(without), digest(with_), digest(reference)
    result.codes = " ".join(entry["code"] for entry in host.probe.entries())
    assert tried and same(without, plain)
    assert same(with_, reference) and result.codes == "LG402"
    assert "Downloading" not in host.output()[mark:] and not (folder(host) / FILES[BIGG]).exists()
    result.passed = True


@pytest.mark.parametrize("row_id", ["E05-F-names-lie"])
def test_names_of_files_lie(host: Host, row_id: str) -> None:
    """Each of the two encoders in the file of the other's name."""
    result = TABLE.add(host, Result(row_id, "Two encoders, each in a file by the other's name"))
    references = {name: ask(host, "txt2img", with_units(host, BASE, (RIGHT[name], name)), OFF) for name in RIGHT}
    fresh(host)
    h, bigg = (folder(host) / FILES[module] for module in (H, BIGG))
    sources = h.resolve(), bigg.resolve()
    for path, source in zip((bigg, h), sources):
        path.unlink()
        path.symlink_to(source)
    without = ask(host, "txt2img", with_units(host, BASE, (H, BASE_H)), OFF)
    found = {}
    for name in RIGHT:
        fresh(host)
        mark = host.mark()
        found[name] = ask(host, "txt2img", with_units(host, BASE, (RIGHT[name], name)), ON)
        assert [entry["code"] for entry in host.probe.entries()] == ["LG402"]
        assert f'"{WRONG[name]}" is used' in told(host, mark)[0]
    # By names it is a wrong pair, by tensors a right one.
    fresh(host)
    mark = host.mark()
    swapped = ask(host, "txt2img", with_units(host, BASE, (BIGG, BASE_H)), ON)
    assert told(host, mark) == []
    result.without, result.with_, result.reference = (
        digest(one) for one in (without, found[BASE_H], references[BASE_H])
    )
    assert not same(without, references[BASE_H]), "it does not fail without LibGuard"
    assert same(swapped, references[BASE_H])
    assert [name for name in RIGHT if not same(found[name], references[name])] == []
    result.codes, result.passed = "LG402", True


@pytest.mark.parametrize("row_id", ["E05-F-warn"])
def test_warned(host: Host, row_id: str) -> None:
    """It is said, and the picture is as the host makes it."""
    result = TABLE.add(host, Result(row_id, "A wrong pair, the encoder guard on warn"))
    wrong = with_units(host, BASE, (BIGG, BASE_H))
    without = ask(host, "txt2img", wrong, OFF)
    fresh(host)
    mark = host.mark()
    with_ = ask(host, "txt2img", wrong, WARN)
    said, entries = told(host, mark), host.probe.entries()
    result.without, result.with_ = digest(without), digest(with_)
    result.codes = " ".join(entry["code"] for entry in entries)
    assert same(with_, without)
    assert [(entry["code"], entry["did"]) for entry in entries] == [("LG402", None)], entries
    assert len(said) == 1 and f'"{H}"' in said[0], said
    assert left_alone(host)
    result.passed = True


@pytest.mark.parametrize("row_id", ["Z19-F-encoder"])
def test_policy_off(host: Host, row_id: str) -> None:
    """Nothing is on ControlNet's scripts in the middle of a generation; with the policy on there is."""
    result = TABLE.add(host, Result(row_id, "A wrong pair, the encoder guard off"))
    wrong = with_units(host, BASE, (BIGG, BASE_H))
    without = ask(host, "txt2img", wrong, OFF)
    mark, noted = host.mark(), {}
    for name, scripts in {"off": NOT_LOOKED_AT, "on": ON}.items():
        fresh(host)
        host.probe("watch_units", on=True)
        pictures = ask(host, "txt2img", wrong, scripts)
        noted[name] = host.probe("watch_units", on=False)
        if name == "off":
            result.without, result.with_ = digest(without), digest(pictures)
            assert same(pictures, without) and host.said(mark) == []
    assert noted["off"] and not any(noted["off"])
    assert noted["on"] and all(noted["on"])
    assert left_alone(host)
    result.passed = True


@pytest.mark.parametrize("row_id", ["E05-F-failed"])
def test_a_failure_leaves_nothing(host: Host, row_id: str) -> None:
    """A request that fails while it samples; the next one is looked at as ever."""
    result = TABLE.add(host, Result(row_id, "A wrong pair in a request that fails, then the same again"))
    reference = ask(host, "txt2img", with_units(host, BASE, (H, BASE_H)), OFF)
    wrong = with_units(host, BASE, (BIGG, BASE_H))
    host.probe.at_step(1, "raise")
    assert host.generate("txt2img", wrong, ON).status == 500
    host.probe.at_step(0, "nothing")
    assert left_alone(host)
    with_ = ask(host, "txt2img", wrong, ON)
    result.with_, result.reference = digest(with_), digest(reference)
    result.codes = " ".join(entry["code"] for entry in host.probe.entries())
    assert same(with_, reference) and result.codes == "LG402" and left_alone(host)
    result.passed = True


@pytest.mark.parametrize("row_id", ["E05-F-other-model"])
def test_adapter_for_another_family(host: Host, row_id: str) -> None:
    """An adapter for SDXL on Stable Diffusion 1.5."""
    noise = np.random.default_rng(5)
    shapes = {"image_proj.proj.weight": (8192, 1024), "image_proj.proj.bias": (8192,)}
    shapes |= {"image_proj.norm.weight": (2048,), "image_proj.norm.bias": (2048,)}
    shapes |= {f"ip_adapter.1.to_{part}_ip.weight": (640, 2048) for part in "kv"}
    tensors = {name: noise.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}
    path = host.data / "models" / "ControlNet" / "ip-adapter_sdxl_vit-h.safetensors"
    save_file(tensors, path)
    result = TABLE.add(host, Result(row_id, "An adapter for SDXL on Stable Diffusion 1.5"))
    try:
        body = with_units(host, BASE, (H, "ip-adapter_sdxl_vit-h"))
        without = host.generate("txt2img", body, OFF)
        mark = host.mark()
        with_ = host.generate("txt2img", body, ON)
    finally:
        path.unlink()
        host.probe("find_adapters")
    said, entries = told(host, mark), host.probe.entries()
    result.without, result.with_ = (f"HTTP {one.status}, {digest(one.pictures)}" for one in (without, with_))
    result.codes = " ".join(entry["code"] for entry in entries)
    assert with_.status == without.status and same(with_.pictures, without.pictures)
    assert result.codes == "LG406" and len(said) == 1 and "768" in said[0] and "2048" in said[0], said
    result.passed = True


# E06: encoders are kept within a family, and let go of when it changes.


@pytest.mark.parametrize("row_id", ["E06-F-same"])
def test_same_family_again_and_again(host: Host, row_id: str) -> None:
    """Its encoder is loaded once, and nothing is said."""
    calls = [("txt2img", with_units(host, BASE, (H, name))) for name in (BASE_H, PLUS, BASE_H, BASE_H)]
    numbers = []

    def prepare() -> None:
        numbers.append(host.probe("encoders")["loaded"])
        seeded(host)

    assert_silent(host, row_id, calls, prepare)
    none, without = numbers
    with_ = host.probe("encoders")["loaded"]
    assert none == {} and list(without) == [FILES[H]] and with_ == without, "the encoder was loaded again"
    assert left_alone(host)


@pytest.mark.parametrize("row_id", ["E06-F-switch"])
def test_switch_of_family(host: Host, row_id: str) -> None:
    """The encoder of the other one is freed; without LibGuard both stay for ever."""
    result = TABLE.add(host, Result(row_id, "An adapter of one family, of another, and of the first again"))
    names = [BASE_H, BASE_BIGG, BASE_BIGG, PLUS, BASE_H, BASE_BIGG]
    bodies = [with_units(host, BASE, (RIGHT[name], name)) for name in names]
    without = [ask(host, "txt2img", body, OFF) for body in bodies]
    kept = host.probe("encoders")["loaded"]
    assert set(kept) == set(FILES.values()), "the host lets go of one by itself, so it proves nothing"

    fresh(host)
    with_, megabytes = [], 0.0
    for place, (name, body) in enumerate(zip(names, bodies)):
        before, mark = host.probe("encoders")["loaded"], host.mark()
        with_.append(ask(host, "txt2img", body, ON))
        said, entries, now = told(host, mark), host.probe.entries(), host.probe("encoders")
        file, others = FILES[RIGHT[name]], [one for one in before if one != FILES[RIGHT[name]]]
        assert list(now["loaded"]) == [file]
        assert now["alive"] == [now["loaded"][file]["number"]], "an encoder that is let go of is still in memory"
        assert file not in before or before[file] == now["loaded"][file], "within a family it is loaded anew"
        assert [entry["code"] for entry in entries] == ["LG401"] * len(others), (place, entries)
        assert len(said) == len(others)
        for other, line, entry in zip(others, said, entries):
            megabytes = before[other]["bytes"] / 1_000_000
            assert other in line and f"{megabytes:.0f} MB freed" in line, line
            result.milliseconds = max(result.milliseconds, entry["milliseconds"])
    result.without = f"both stay, {sum(one['bytes'] for one in kept.values()) / 1_000_000:.0f} MB"
    result.with_ = f"{digest([picture for pictures in with_ for picture in pictures])}, {megabytes:.0f} MB freed"
    result.reference = digest([picture for pictures in without for picture in pictures])
    assert all(same(one, other) for one, other in zip(with_, without))
    result.codes, result.passed = "LG401", left_alone(host)
    assert result.passed


@pytest.mark.parametrize("row_id", ["E06-F-two-at-once"])
def test_two_families_in_one_request(host: Host, row_id: str) -> None:
    """Each unit has its own encoder here: nothing is wrong, and both stay."""
    body = with_units(host, BASE, (H, BASE_H), (BIGG, BASE_BIGG))
    assert_silent(host, row_id, [("txt2img", body), ("txt2img", body)], lambda: seeded(host))
    assert set(host.probe("encoders")["loaded"]) == set(FILES.values())


@pytest.mark.parametrize("row_id", ["E06-F-two-wrong"])
def test_two_wrong_units(host: Host, row_id: str) -> None:
    """Both preprocessors exchanged by mistake: each adapter is given its own."""
    result = TABLE.add(host, Result(row_id, "Two units, each with the other's preprocessor"))
    reference = ask(host, "txt2img", with_units(host, BASE, (H, BASE_H), (BIGG, BASE_BIGG)), OFF)
    wrong = with_units(host, BASE, (BIGG, BASE_H), (H, BASE_BIGG))
    without = ask(host, "txt2img", wrong, OFF)
    mark = host.mark()
    with_ = ask(host, "txt2img", wrong, ON)
    result.without, result.with_, result.reference = digest(without), digest(with_), digest(reference)
    result.codes = " ".join(entry["code"] for entry in host.probe.entries())
    assert not same(without, reference) and same(with_, reference)
    assert result.codes == "LG402 LG402" and len(told(host, mark)) == 2
    result.passed = True


# Z15: right pairs.

CALLS: dict[str, Callable[[Host], list[tuple[str, dict[str, Any]]]]] = {
    f"Z15-F-{name}": lambda host, name=name: [  # type: ignore[misc]
        (endpoint, with_units(host, body, (RIGHT[name], name))) for endpoint, body in REQUESTS.values()
    ]
    for name in RIGHT
}


@pytest.mark.parametrize("row_id", CALLS)
def test_right_pair(host: Host, row_id: str) -> None:
    calls = CALLS[row_id](host)
    result = assert_silent(host, row_id, [*calls, ("txt2img", BASE)], lambda: fresh(host))
    plain = [picture for endpoint, body in REQUESTS.values() for picture in ask(host, endpoint, body, OFF)]
    assert result.reference != digest([*plain, *ask(host, "txt2img", BASE, OFF)]), "the adapter has no effect"
    assert left_alone(host)

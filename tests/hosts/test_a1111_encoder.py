"""IP-Adapters and their image encoders on a running AUTOMATIC1111 with sd-webui-controlnet 56cec5b: rows E05 and E06.

The projections' and encoders' widths are the real ones; a stand-in has the encoders built with two layers.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from a1111_rows import PIXEL_HIRES, SMALL_CLIP, controlnet, loaded
from harness.keeper import Host, Keeper
from harness.proof import BASE, INIT, OFF, ON, TABLE, TITLE, Result, assert_silent, digest, same
from PIL import Image
from safetensors.numpy import save_file

FLAGS = ("--no-half",)

H, G, AUTO, STYLE = "ip-adapter_clip_h", "ip-adapter_clip_g", "ip-adapter-auto", "t2ia_style_clipvision"
PLAIN_H, PLAIN_G, PLUS_H = "ip-adapter_sd15", "ip-adapter_sd15_vit-G", "ip-adapter-plus_sd15"
#: ViT-bigG's, whose name is that of one for ViT-H; and ViT-H's, whose name nobody knows.
LYING_G, NAMELESS_H = "ip-adapter_sd15_light", "mystyle"
#: A pickle, of ViT-bigG's.
PICKLE_G = "oldstyle_sd15"

RIGHT = {PLAIN_H: H, PLAIN_G: G, PLUS_H: H, LYING_G: G, NAMELESS_H: H, PICKLE_G: G}
#: The encoder of each preprocessor, as the extension's files are called.
CONFIGS = {H: "clip_h", G: "clip_g"}

REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "txt2img": ("txt2img", BASE),
    "img2img": ("img2img", {**BASE, **INIT}),
    "hires": ("txt2img", {**BASE, **PIXEL_HIRES}),
}

#: The wrong pairs. Each adapter with the other family's preprocessor; the style adapter's ViT-L; choices by name.
PAIRS = {
    "g-for-h": (PLAIN_H, G),
    "h-for-g": (PLAIN_G, H),
    "g-for-plus": (PLUS_H, G),
    "l-for-h": (PLAIN_H, STYLE),
    "auto-lying": (LYING_G, AUTO),
    "auto-nameless": (NAMELESS_H, AUTO),
}

WARN: dict[str, Any] = {TITLE: {"args": [True, "fix", "auto", "fix", "fix", "warn"]}}
NOT_LOOKED_AT: dict[str, Any] = {TITLE: {"args": [True, "fix", "auto", "fix", "fix", "off"]}}

#: Without LibGuard: image_proj_models.py:151, and presets.py:21 for a name that is not known.
MISMATCH = ("shapes cannot be multiplied", "not found in ipadapter presets")


@pytest.fixture
def host(a1111: Keeper) -> Host:
    return loaded(a1111(flags=FLAGS, extensions=(controlnet(), SMALL_CLIP)))


def fresh(host: Host) -> None:
    """A process that has just started: no adapter, no encoder, nothing encoded."""
    host.stop()
    host.start()
    loaded(host)
    host.probe("seed")


def listed(host: Host, name: str) -> str:
    """A model's name as the extension lists it, with its hash."""
    names = host.get("/controlnet/model_list").json["model_list"]
    return next(one for one in names if one.split(" [")[0] == name)


def picture(shade: int) -> str:
    """One of many that differ, so that nothing of what was encoded before serves."""
    image = Image.fromarray(np.full((64, 64, 3), (shade, 90, 255 - shade), np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def with_units(host: Host, body: dict[str, Any], *pairs: tuple[str, str], image: str = "") -> dict[str, Any]:
    """A request with a unit for each adapter and preprocessor."""
    shown = image or INIT["init_images"][0]
    units = [
        {"enabled": True, "image": shown, "module": module, "model": listed(host, name), "processor_res": 64}
        for name, module in pairs
    ]
    return {**body, "alwayson_scripts": {"ControlNet": {"args": units}}}


def ask(host: Host, endpoint: str, body: dict[str, Any], scripts: dict[str, Any]) -> list[np.ndarray]:
    """A request's pictures, of which the first is the generated one. What img2img encodes is drawn anew."""
    host.probe("seed")
    answer = host.generate(endpoint, body, scripts)
    assert answer.status == 200, answer.text[:2000]
    assert answer.pictures, host.tail()
    return answer.pictures


def told(host: Host, mark: int) -> list[str]:
    """LibGuard's findings since a mark."""
    return [line for line in host.said(mark) if " LG" in line]


def raised(host: Host, mark: int) -> bool:
    """Whether the extension failed, as it does with a wrong pair."""
    return any(text in host.output()[mark:] for text in MISMATCH)


def encoders_loaded(host: Host, mark: int) -> list[str]:
    """The configs of the encoders that were loaded since a mark."""
    start = "small image encoder loaded: "
    return [line.removeprefix(start) for line in host.output()[mark:].splitlines() if line.startswith(start)]


def assert_paired(
    host: Host, row_id: str, kind: str, wrong: tuple[tuple[str, str], ...], right: tuple[tuple[str, str], ...]
) -> None:
    """The wrong pairs give the picture that the right ones give as the first request of a process, which it is too."""
    endpoint, body = REQUESTS[kind]
    title = f"{endpoint}, " + " and ".join(f'adapter "{name}" with "{module}"' for name, module in wrong)
    result = TABLE.add(host, Result(row_id, title))

    mark = host.mark()
    plain = ask(host, endpoint, body, OFF)
    failing = host.generate(endpoint, with_units(host, body, *wrong), OFF)
    without, failed = failing.pictures, raised(host, mark)
    shown = f"{digest(without)}, which shows no adapter" if without else failing.json["errors"]
    result.without = f"HTTP {failing.status}, {shown}"

    fresh(host)
    reference = ask(host, endpoint, with_units(host, body, *right), OFF)
    result.reference = digest(reference)

    fresh(host)
    mark = host.mark()
    host.probe("seed")
    answer = host.generate(endpoint, with_units(host, body, *wrong), ON)
    said, entries = told(host, mark), host.probe.entries()
    result.with_, result.codes = digest(answer.pictures), " ".join(dict.fromkeys(entry["code"] for entry in entries))
    result.milliseconds = sum(entry["milliseconds"] for entry in entries)

    assert failed and not same(without[:1], reference[:1]), "it does not fail without LibGuard"
    if without and kind == "txt2img":
        assert same(without[:1], plain[:1]), "the picture without LibGuard is not the one without ControlNet"
    assert same(answer.pictures, reference), f"{result.with_} with LibGuard, {result.reference} of the right pair"
    exchanged = [(name, module) for (name, module), kept in zip(wrong, right) if module != kept[1]]
    assert [entry["code"] for entry in entries] == ["LG402"] * len(exchanged), entries
    assert all(entry["did"] and entry["proof"] for entry in entries), entries
    assert len(said) == len(exchanged), said
    for line, (name, _) in zip(said, exchanged):
        assert f'"{name} [' in line and f'"{RIGHT[name]}" is used' in line, line
    assert encoders_loaded(host, mark) == list(dict.fromkeys(CONFIGS[module] for _, module in right))
    for place, (_, module) in enumerate(right):
        assert f'ControlNet {place}: \\"Module: {module},' in answer.infotext, answer.infotext
    assert host.probe.marks() == [] and not raised(host, mark)
    result.passed = True


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("name", ["g-for-h", "h-for-g"], ids=lambda name: f"E05-A-{name}")
def test_wrong_pair(host: Host, name: str, kind: str) -> None:
    adapter, module = PAIRS[name]
    assert_paired(host, f"E05-A-{name}-{kind}", kind, ((adapter, module),), ((adapter, RIGHT[adapter]),))


@pytest.mark.parametrize(
    "name", ["g-for-plus", "l-for-h", "auto-lying", "auto-nameless"], ids=lambda name: f"E05-A-{name}"
)
def test_wrong_pair_of_another_kind(host: Host, name: str) -> None:
    """1280 is not ViT-bigG's where it is the width of hidden states; and a file's name decides nothing."""
    adapter, module = PAIRS[name]
    assert_paired(host, f"E05-A-{name}", "txt2img", ((adapter, module),), ((adapter, RIGHT[adapter]),))


@pytest.mark.parametrize("row_id", ["E05-A-two-units"])
def test_one_of_two_units_is_wrong(host: Host, row_id: str) -> None:
    """Each unit has its own encoder. Without LibGuard the first request of a process fails, and a later one is neither
    with nor without: the right one's adapter is in the UNet when the wrong one raises."""
    fresh(host)
    wrong, right = ((PLAIN_H, H), (PLAIN_G, H)), ((PLAIN_H, H), (PLAIN_G, G))
    assert_paired(host, row_id, "txt2img", wrong, right)


@pytest.mark.parametrize("row_id", ["E05-A-two-exchanged"])
def test_both_units_are_wrong(host: Host, row_id: str) -> None:
    wrong, right = ((PLUS_H, G), (PLAIN_G, H)), ((PLUS_H, H), (PLAIN_G, G))
    assert_paired(host, row_id, "txt2img", wrong, right)


@pytest.mark.parametrize("row_id", ["E05-A-pickle"])
def test_pickle(host: Host, row_id: str) -> None:
    """What it takes is known when the host has loaded it: from its second request on."""
    result = TABLE.add(host, Result(row_id, f'txt2img, adapter "{PICKLE_G}.pth" with "{H}", for the second time'))
    fresh(host)
    wrong, right = (with_units(host, BASE, (PICKLE_G, module)) for module in (H, G))
    mark = host.mark()
    without = ask(host, "txt2img", wrong, ON)
    failed = raised(host, mark) and told(host, mark) == []
    with_ = ask(host, "txt2img", wrong, ON)
    said, entries = told(host, mark), host.probe.entries()
    fresh(host)
    reference = ask(host, "txt2img", right, OFF)
    result.without, result.with_, result.reference = digest(without), digest(with_), digest(reference)
    result.codes = " ".join(entry["code"] for entry in entries)
    assert failed and not same(without[:1], reference[:1])
    assert same(with_, reference)
    assert result.codes == "LG402" and len(said) == 1 and f'"{G}" is used' in said[0], said
    result.passed = True


@contextmanager
def moved(host: Host, config: str) -> Iterator[None]:
    """Without the file of an encoder."""
    folder = host.data / "extensions" / "sd-webui-controlnet" / "annotator" / "downloads" / "clip_vision"
    path = folder / f"{config}.pth"
    away = path.with_suffix(".away")
    path.rename(away)
    try:
        yield
    finally:
        away.rename(path)


@pytest.mark.parametrize("row_id", ["E05-A-absent"])
def test_encoder_is_not_on_disk(host: Host, row_id: str) -> None:
    """It is said, on the console and under the picture, and nothing is downloaded."""
    result = TABLE.add(host, Result(row_id, "The encoder that an adapter needs is not on disk"))
    fresh(host)
    wrong = with_units(host, BASE, (PLAIN_H, G))
    with moved(host, CONFIGS[H]):
        without = ask(host, "txt2img", wrong, OFF)
        host.probe("comments", on=True)
        mark = host.mark()
        with_ = ask(host, "txt2img", wrong, ON)
        said, entries, comments = told(host, mark), host.probe.entries(), host.probe("comments", on=False)
    result.without, result.with_ = digest(without), digest(with_)
    result.codes = " ".join(entry["code"] for entry in entries)
    assert same(with_, without) and not raised(host, mark)
    assert [entry["code"] for entry in entries] == ["LG405"] and not entries[0]["did"], entries
    assert len(said) == 1 and "LG405" in said[0] and "OpenCLIP ViT-H" in said[0], said
    assert len(comments) == 1 and comments[0].startswith("LibGuard LG405") and "OpenCLIP ViT-H" in comments[0]
    assert "Downloading" not in host.output()[mark:]
    result.passed = True


@pytest.mark.parametrize("row_id", ["E05-A-two-absent"])
def test_encoder_of_one_of_two_is_not_on_disk(host: Host, row_id: str) -> None:
    """Its unit is left out, and the other one works. Without LibGuard the first request of a process fails."""
    result = TABLE.add(host, Result(row_id, "Two units, and one's encoder is not on disk"))
    fresh(host)
    reference = ask(host, "txt2img", with_units(host, BASE, (PLAIN_H, H)), OFF)
    wrong = with_units(host, BASE, (PLAIN_H, H), (PLAIN_G, H))
    fresh(host)
    with moved(host, CONFIGS[G]):
        without = host.generate("txt2img", wrong, OFF)
    fresh(host)
    with moved(host, CONFIGS[G]):
        mark = host.mark()
        host.probe("seed")
        answer = host.generate("txt2img", wrong, ON)
        said, entries = told(host, mark), host.probe.entries()
    result.without, result.with_ = f"HTTP {without.status}", digest(answer.pictures)
    result.reference, result.codes = digest(reference), " ".join(entry["code"] for entry in entries)
    assert not without.pictures or not same(without.pictures[:1], reference[:1])
    assert same(answer.pictures, reference) and not raised(host, mark)
    assert result.codes == "LG405" and len(said) == 1 and PLAIN_G in said[0], said
    assert PLAIN_H in answer.json["info"] and PLAIN_G not in answer.json["info"], "infotext names what was not used"
    result.passed = True


@pytest.mark.parametrize("row_id", ["E05-A-chosen-absent"])
def test_chosen_encoder_is_not_on_disk(host: Host, row_id: str) -> None:
    """Without LibGuard the extension would download the wrong one, here from nowhere."""
    result = TABLE.add(host, Result(row_id, "A preprocessor of the wrong family, whose encoder is not on disk"))
    fresh(host)
    reference = ask(host, "txt2img", with_units(host, BASE, (PLAIN_H, H)), OFF)
    fresh(host)
    wrong = with_units(host, BASE, (PLAIN_H, G))
    with moved(host, CONFIGS[G]):
        mark = host.mark()
        without = ask(host, "txt2img", wrong, OFF)
        tried = "Downloading" in host.output()[mark:]
        mark = host.mark()
        with_ = ask(host, "txt2img", wrong, ON)
    result.without, result.with_, result.reference = digest(without), digest(with_), digest(reference)
    result.codes = " ".join(entry["code"] for entry in host.probe.entries())
    assert tried and not same(without[:1], reference[:1])
    assert same(with_, reference) and result.codes == "LG402"
    assert "Downloading" not in host.output()[mark:]
    result.passed = True


@pytest.mark.parametrize("row_id", ["E05-A-warn"])
def test_warned(host: Host, row_id: str) -> None:
    """It is said, and the picture is as the host makes it."""
    result = TABLE.add(host, Result(row_id, "A wrong pair, the encoder guard on warn"))
    wrong = with_units(host, BASE, (PLAIN_H, G))
    without = ask(host, "txt2img", wrong, OFF)
    mark = host.mark()
    answer = host.generate("txt2img", wrong, WARN)
    said, entries = told(host, mark), host.probe.entries()
    result.without, result.with_ = digest(without), digest(answer.pictures)
    result.codes = " ".join(entry["code"] for entry in entries)
    assert same(answer.pictures, without) and raised(host, mark)
    assert [entry["code"] for entry in entries] == ["LG402"] and not entries[0]["did"], entries
    assert len(said) == 1 and f'"{H}"' in said[0], said
    assert f"Module: {G}," in answer.infotext
    result.passed = True


@pytest.mark.parametrize("row_id", ["Z19-A-encoder"])
def test_policy_off(host: Host, row_id: str) -> None:
    """Nothing is on ControlNet's scripts in the middle of a generation; with the policy on there is."""
    result = TABLE.add(host, Result(row_id, "A wrong pair, the encoder guard off"))
    wrong = with_units(host, BASE, (PLAIN_H, G))
    without = ask(host, "txt2img", wrong, OFF)
    mark, noted = host.mark(), {}
    for name, scripts in {"off": NOT_LOOKED_AT, "on": ON}.items():
        host.probe("watch_units", on=True)
        pictures = ask(host, "txt2img", wrong, scripts)
        noted[name] = host.probe("watch_units", on=False)
        if name == "off":
            result.without, result.with_ = digest(without), digest(pictures)
            assert same(pictures, without) and host.said(mark) == []
    assert noted["off"] and not any(noted["off"])
    assert noted["on"] and all(noted["on"])
    assert host.probe("unit_marks") == []
    result.passed = True


@pytest.mark.parametrize("row_id", ["E05-A-failed"])
def test_a_failure_leaves_nothing(host: Host, row_id: str) -> None:
    """A request that fails while it samples; the next one is looked at as ever."""
    result = TABLE.add(host, Result(row_id, "A wrong pair in a request that fails, then the same again"))
    reference = ask(host, "txt2img", with_units(host, BASE, (PLAIN_H, H)), OFF)
    wrong = with_units(host, BASE, (PLAIN_H, G))
    host.probe.at_step(1, "raise")
    assert host.generate("txt2img", wrong, ON).status == 500
    host.probe.at_step(0, "nothing")
    assert host.probe("unit_marks") == []
    with_ = ask(host, "txt2img", wrong, ON)
    result.with_, result.reference = digest(with_), digest(reference)
    result.codes = " ".join(entry["code"] for entry in host.probe.entries())
    assert same(with_, reference) and result.codes == "LG402" and host.probe("unit_marks") == []
    result.passed = True


def write_adapter_for_sdxl(path: Path) -> None:
    noise = np.random.default_rng(5)
    shapes = {"image_proj.proj.weight": (8192, 1024), "image_proj.proj.bias": (8192,)}
    shapes |= {"image_proj.norm.weight": (2048,), "image_proj.norm.bias": (2048,)}
    shapes |= {f"ip_adapter.1.to_{part}_ip.weight": (640, 2048) for part in "kv"}
    save_file({name: noise.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}, path)


def write_page(path: Path) -> None:
    """What a failed download leaves."""
    path.write_bytes(b"<html>" * 100)


FILES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "E05-A-other-model": ("ip-adapter_sdxl_vit-h", write_adapter_for_sdxl, "LG406"),
    "E05-A-damaged": ("broken_sd15", write_page, "LG407"),
}


@pytest.mark.parametrize("row_id", FILES)
def test_a_file_that_cannot_serve(host: Host, row_id: str) -> None:
    """It is said before sampling; the picture is as the host makes it."""
    name, write, code = FILES[row_id]
    result = TABLE.add(host, Result(row_id, f'An adapter\'s file that cannot serve, "{name}"'))
    path = host.data / "models" / "ControlNet" / f"{name}.safetensors"
    write(path)
    try:
        body = with_units(host, BASE, (name, H))
        without = ask(host, "txt2img", body, OFF)
        mark = host.mark()
        with_ = ask(host, "txt2img", body, ON)
    finally:
        path.unlink()
    said, entries = told(host, mark), host.probe.entries()
    result.without, result.with_ = digest(without), digest(with_)
    result.codes = " ".join(entry["code"] for entry in entries)
    assert same(with_, without) and "*** Error running process" in host.output()[mark:]
    assert result.codes == code and len(said) == 1 and name in said[0], said
    result.passed = True


# Right pairs.


@pytest.mark.parametrize("row_id", ["E06-A"])
def test_same_family_again_and_again(host: Host, row_id: str) -> None:
    """Its encoder is loaded once, each time for another picture, and nothing is said."""
    names = (PLAIN_H, PLUS_H, NAMELESS_H, PLAIN_H, PLAIN_H)
    calls = [("txt2img", with_units(host, BASE, (name, H), image=picture(40 * n))) for n, name in enumerate(names)]
    marks = []

    def prepare() -> None:
        fresh(host)
        marks.append(host.mark())

    assert_silent(host, row_id, calls, prepare)
    assert encoders_loaded(host, marks[-1]) == [CONFIGS[H]], "within a family it is loaded anew"
    assert not raised(host, marks[-1])


@pytest.mark.parametrize("row_id", ["E06-A-cached"])
def test_same_picture_again_and_again(host: Host, row_id: str) -> None:
    """Changes of family with one picture: what it was encoded to is remembered by the extension, and serves."""
    names = (PLAIN_H, PLAIN_G, PLAIN_H, PLAIN_G, PLUS_H)
    calls = [("txt2img", with_units(host, BASE, (name, RIGHT[name]))) for name in names]
    marks = []

    def prepare() -> None:
        fresh(host)
        marks.append(host.mark())

    assert_silent(host, row_id, calls, prepare)
    assert sorted(encoders_loaded(host, marks[-1])) == sorted([CONFIGS[H], CONFIGS[G], CONFIGS[H]])


def automatic(host: Host) -> dict[str, Any]:
    return with_units(host, BASE, (PLAIN_G, AUTO))


def two_families(host: Host) -> dict[str, Any]:
    return with_units(host, BASE, (PLAIN_H, H), (PLAIN_G, G))


def second_name(host: Host) -> dict[str, Any]:
    return with_units(host, BASE, (PLUS_H, "ip-adapter_clip_sdxl_plus_vith"))


def part_of_a_name(host: Host) -> dict[str, Any]:
    """As requests over the API may name an adapter."""
    body = with_units(host, BASE, (PLAIN_H, "ip-adapter_clip_sd15"))
    body["alwayson_scripts"]["ControlNet"]["args"][0]["model"] = PLAIN_H
    return body


RIGHT_PAIRS: dict[str, Callable[[Host], dict[str, Any]]] = {
    "Z15-A-auto": automatic,
    "Z15-A-two-families": two_families,
    "Z15-A-second-name": second_name,
    "Z15-A-api-name": part_of_a_name,
}


@pytest.mark.parametrize("row_id", RIGHT_PAIRS)
def test_right_pair(host: Host, row_id: str) -> None:
    body = RIGHT_PAIRS[row_id](host)
    mark = host.mark()
    plain, with_ = (ask(host, "txt2img", one, OFF)[0] for one in (BASE, body))
    calls = [("txt2img", body), ("img2img", {**body, **INIT}), ("txt2img", body)]
    # Adapters are built before img2img draws, and anew with the first request of a tab; from here on they are there.
    for endpoint, asked in calls:
        ask(host, endpoint, asked, OFF)
    assert_silent(host, row_id, calls, lambda: host.probe("seed"))
    assert not same([plain], [with_]), "the adapter has no effect, so this proves nothing"
    assert not raised(host, mark)

"""The encoder guard in the embedded host: what its policies do, what it leaves out, and that a random sequence never
goes wrong."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demo.check import OFF, ON
from demo.encoder_faults import LIGHT, PLUS, RENAMED, VIT_BIGG, VIT_H, with_adapters
from demo.faults import ENCODING, HEALTHY, TXT2IMG, Call, pictures, send
from lib_guard.hooks import marked


def with_policy(policy: str) -> dict[str, Any]:
    return {"LibGuard": {"args": [True, "fix", "auto", "fix", "fix", policy]}}


def entries() -> list[Any]:
    return sys.modules["lib_guard.ledger"].LEDGER.last().entries


def codes() -> list[str]:
    return [entry.finding.code for entry in entries()]


def picture(host: Any, call: Call, scripts: dict[str, Any] = ON) -> np.ndarray:
    (found,) = pictures(send(host, call, scripts))
    return found


@pytest.fixture
def host(bench):
    """With a model fresh from the disk, before and after."""
    for moment in ("before", "after"):
        afresh(bench)
        if moment == "before":
            yield bench


def afresh(host: Any) -> None:
    host.post("/sdapi/v1/unload-checkpoint")
    host.options(**HEALTHY)


@contextmanager
def missing(name: str) -> Iterator[None]:
    """With an image encoder that is not on disk."""
    from modules import paths

    folder = Path(paths.folders.models) / "IP-Adapter" / name / "image_encoder"
    aside = folder.with_name("aside")
    shutil.move(folder, aside)
    try:
        yield
    finally:
        shutil.move(aside, folder)


def test_of_several_the_one_without_encoder_is_left_out_and_named(host):
    alone = picture(host, with_adapters(VIT_H), OFF)
    afresh(host)
    with missing("sdxl_models"):
        assert send(host, with_adapters(VIT_H, VIT_BIGG), OFF).status != 200, "nothing is lost without LibGuard"
        afresh(host)
        reply = send(host, with_adapters(VIT_H, VIT_BIGG), ON)
    assert np.array_equal(pictures(reply)[0], alone)
    (entry,) = entries()
    assert entry.finding.code == "LG405" and VIT_BIGG in entry.finding.saw and "ViT-bigG" in entry.finding.saw
    comments = json.loads(reply.json["info"])["comments"]
    assert "LG405" in comments and VIT_BIGG in comments


def test_a_single_one_without_encoder_is_left_out(host):
    """Its name says ViT-H, which is there; what its tensors need is not."""
    plain = picture(host, TXT2IMG, OFF)
    with missing("sdxl_models"):
        assert send(host, with_adapters(RENAMED), OFF).status != 200
        afresh(host)
        reply = send(host, with_adapters(RENAMED), ON)
    assert np.array_equal(pictures(reply)[0], plain) and "LG405" in codes()
    assert "LG405" in json.loads(reply.json["info"])["comments"]
    assert np.array_equal(picture(host, TXT2IMG), plain) and codes() == []


def test_where_the_host_finds_none_it_is_said_which(host):
    """The embedded host raises, as it does without LibGuard."""
    with missing("sdxl_models"):
        assert send(host, with_adapters(VIT_BIGG), OFF).status != 200
        afresh(host)
        assert send(host, with_adapters(VIT_BIGG), ON).status != 200
    assert codes() == ["LG405"] and "ViT-bigG" in entries()[0].finding.saw


@pytest.mark.parametrize("endpoint", ["hires", "img2img", "inpaint"])
def test_several_families_in_every_pass(host, endpoint):
    """Each of the two shows, and the order in which they are named does not matter."""
    call = ENCODING[endpoint]
    pairs = [(VIT_H, VIT_BIGG), (VIT_BIGG, VIT_H)]
    assert send(host, with_adapters(*pairs[0], call=call), OFF).status != 200
    afresh(host)
    both, turned = (picture(host, with_adapters(*names, call=call)) for names in pairs)
    assert set(codes()) == {"LG403"} and np.abs(both.astype(int) - turned).max() <= 1
    for one in (VIT_H, VIT_BIGG):
        afresh(host)
        assert not np.array_equal(both, picture(host, with_adapters(one, call=call), OFF))


def test_warn_says_it_and_touches_nothing(host):
    picture(host, with_adapters(VIT_H), OFF)
    encoder = host.shared.sd_model.image_encoder
    assert send(host, with_adapters(VIT_BIGG), with_policy("warn")).status != 200
    assert codes() == ["LG401"] and entries()[0].repair is None
    assert host.shared.sd_model.image_encoder is encoder


@pytest.mark.parametrize("names", [(VIT_H, VIT_BIGG), (VIT_H, LIGHT)], ids=["families", "left behind"])
def test_warn_of_several(host, names):
    send(host, with_adapters(*names), with_policy("warn"))
    said = codes()
    send(host, TXT2IMG, with_policy("warn"))
    assert [*said, *codes()] == ["LG403", "LG404"][int(names[1] == LIGHT) :]
    assert all(entry.repair is None for entry in entries())


def test_off_attaches_nothing(host):
    from modules import ip_adapter

    picture(host, with_adapters(VIT_H), OFF)
    seen: list[list[str]] = []
    original = ip_adapter.load

    def load(*args: Any) -> None:
        seen.append(marked(ip_adapter))
        original(*args)

    ip_adapter.load = load
    try:
        assert send(host, with_adapters(VIT_BIGG), with_policy("off")).status != 200
        afresh(host)
        send(host, with_adapters(VIT_H), ON)
    finally:
        ip_adapter.load = original
    # The precision guard minds the same function.
    assert len(seen[0]) == 1 and len(seen[1]) >= 1 and marked(ip_adapter) == []


def test_what_was_left_before_it_was_on_is_taken_out(host):
    plain = picture(host, TXT2IMG, OFF)
    picture(host, with_adapters(VIT_H, LIGHT), OFF)
    assert send(host, TXT2IMG, OFF).status != 200, "it does not fail without LibGuard"
    assert np.array_equal(picture(host, TXT2IMG), plain) and codes() == ["LG404"]
    unet = host.shared.sd_model.unet
    assert unet.encoder_hid_proj is None and unet.config.encoder_hid_dim_type is None
    assert not any("IPAdapter" in type(one).__name__ for one in unet.attn_processors.values())


def test_what_was_there_is_put_back_itself(host):
    """Not another object of the same class: it may be somebody's own."""
    unet = host.shared.sd_model.unet if host.shared.sd_model else None
    picture(host, TXT2IMG, OFF)
    unet = host.shared.sd_model.unet
    before = unet.attn_processors
    picture(host, with_adapters(VIT_H, LIGHT))
    picture(host, TXT2IMG)
    assert codes() == ["LG404"]
    after = unet.attn_processors
    assert before.keys() == after.keys() and all(after[name] is before[name] for name in before)


def test_an_adapter_of_another_family_of_models_is_said_beforehand(host):
    host.options(sd_model_checkpoint="tiny-sdxl")
    send(host, with_adapters(VIT_H), ON)
    found = next(entry.finding for entry in entries() if entry.finding.code == "LG406")
    assert found.evidence["adapter_width"] == 32 and found.evidence["model_width"] == 64
    host.options(sd_model_checkpoint="tiny-sd15")
    picture(host, with_adapters(VIT_H))
    assert codes() == []


BROKEN = {
    "empty": b"",
    "a page": b"<!DOCTYPE html><title>Not found</title>",
    "a huge header": (2**60).to_bytes(8, "little") + b"{",
    "cut off": b"\x40\x00\x00\x00\x00\x00\x00\x00" + b'{"a":',
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_cannot_be_read_is_one_line(host, kind):
    from modules import ip_adapter

    name = '<b onclick="x">broken'
    place = ip_adapter.file_of(VIT_H).with_name(f"{name}.safetensors")
    place.write_bytes(BROKEN[kind])
    try:
        send(host, with_adapters(name), ON)
    finally:
        place.unlink()
    assert [entry.finding.code for entry in entries() if entry.finding.guard == "encoder"] == ["LG407"]
    html = sys.modules["lib_guard.ui.accordion"].status_html(sys.modules["lib_guard.ledger"].LEDGER.last())
    assert "<b onclick" not in html and "broken" in html
    assert picture(host, with_adapters(VIT_H)) is not None and codes() == []


def test_an_error_of_its_own_does_not_stop_a_generation(host, monkeypatch):
    expected = picture(host, with_adapters(VIT_H), OFF)
    module = sys.modules["lib_guard.guards.encoder_pipeline"]

    def fail(*args: Any) -> None:
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(module, "looked_at", fail)
    assert np.array_equal(picture(host, with_adapters(VIT_H)), expected) and codes() == ["LG001"]


def test_whatever_comes_in_whatever_order(host):
    """Each picture is that of the request alone, and the model is clean after each plain one."""
    sets = [(), (VIT_H,), (VIT_BIGG,), (PLUS,), (VIT_H, LIGHT), (VIT_H, VIT_BIGG), (RENAMED, VIT_H)]
    chance, references = random.Random(11), {}
    for names in sets[:5]:
        afresh(host)
        references[names] = picture(host, with_adapters(*names) if names else TXT2IMG, OFF)
    afresh(host)
    for _ in range(40):
        names = chance.choice(sets)
        if chance.random() < 0.15:
            _fail_once(host, chance.choice(["load_ip_adapter", "encode_image"]), names)
        found = picture(host, with_adapters(*names) if names else TXT2IMG)
        assert np.array_equal(references.setdefault(names, found), found), names
        unet = host.shared.sd_model.unet
        assert names or unet.encoder_hid_proj is None


def _fail_once(host: Any, method: str, names: tuple[str, ...]) -> None:
    pipe = host.shared.sd_model

    def fail(*args: Any, **kwargs: Any) -> None:
        raise ValueError("in the middle")

    setattr(pipe, method, fail)
    try:
        send(host, with_adapters(*(names or (VIT_H,))), ON)
    finally:
        delattr(pipe, method)

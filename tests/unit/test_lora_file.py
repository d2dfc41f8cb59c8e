"""What is said of a LoRA's file, on models of real widths without weights."""

from __future__ import annotations

import os
import pickle
import struct
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from live_models import DIFFUSERS, OWN, layers, named, on_meta, place
from test_family import lora, peft, write
from torch import nn

from lib_guard.findings import Finding, sentence
from lib_guard.guards import lora_file
from lib_guard.guards.lora_family import sampling_layers
from lib_guard.guards.lora_file import lora_file_findings, silenced
from lib_guard.hosts.lora_handling import LoraUse, Place, Reach

Shapes = Mapping[str, tuple[int, ...]]
NOBODY: frozenset[str] = frozenset()
NONE = Reach(0)
SPOKEN = {"sd15": "SD1.5", "sd2": "SD2", "sdxl": "SDXL", "flux1": "FLUX.1"}

CROSS = "down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
SQUARE = "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    lora_file._remembered.cache_clear()
    yield


def saved(folder: Path, shapes: Shapes, metadata: Mapping[str, str] | None = None) -> Path:
    return write(folder, shapes, metadata)


def use(file: Path | None, name: str = "style", strengths: tuple[float | str | None, ...] = (1.0,)) -> LoraUse:
    return LoraUse.of(name, file, strengths)


def said(one: LoraUse, reach: Reach | None, places: list[Place], quiet: frozenset[str] = NOBODY) -> list[Finding]:
    found = lora_file_findings(one, reach, places, quiet)
    for finding in found:
        line = sentence(finding, None)
        assert "\n" not in line and line.isprintable()
        assert all(isinstance(value, (str, int, float, bool, type(None))) for value in finding.evidence.values())
        assert one.file is None or str(one.file.parent) not in line + str(finding.evidence)
    return found


def codes(*arguments: object) -> list[str]:
    return [finding.code for finding in said(*arguments)]  # type: ignore[arg-type]


def of_all_layers(module: nn.Module, form: str) -> dict[str, tuple[int, ...]]:
    """A LoRA of every layer of a model, as kohya's trainer or PEFT writes it."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, into, out, conv in layers(module):
        if form == "kohya":
            shapes |= lora(f"lora_unet_{name.replace('.', '_')}", into, out, conv=conv)
        elif not conv:
            shapes |= peft(f"transformer.{name}", into, out)
    return shapes


def sd15() -> list[Place]:
    return [place(on_meta(DIFFUSERS["sd15"]))]


# Another family.


@pytest.mark.parametrize("loaded", [DIFFUSERS, OWN], ids=["on diffusers' names", "on own names"])
@pytest.mark.parametrize("trained", [DIFFUSERS, OWN], ids=["diffusers' names", "own names"])
@pytest.mark.parametrize("form", ["kohya", "peft"])
@pytest.mark.parametrize("made_for", DIFFUSERS)
def test_every_pair_of_families(tmp_path, made_for, form, trained, loaded):
    module = on_meta(trained[made_for])
    file = saved(tmp_path, of_all_layers(module, form))
    whole = Reach(len(layers(module)))
    for family, make in loaded.items():
        places = [place(on_meta(make))]
        if family == made_for:
            assert codes(use(file), whole, places) == []
            continue
        (finding,) = said(use(file), NONE, places)
        assert finding.code == "LG304" and finding.evidence["cause_key"] == "style"
        assert finding.evidence["made_for"] == made_for and finding.evidence["model"] == family
        assert f"was made for {SPOKEN[made_for]} (" in finding.saw and f"the model is {SPOKEN[family]} (" in finding.saw
        for key in ("shape", "model_shape"):
            assert finding.evidence[key] in finding.saw and finding.evidence[key].startswith("[")
        assert codes(use(file), Reach(1), places) == codes(use(file), None, places) == ["LG304"]


def test_the_tensors_that_decide_are_both_named(tmp_path):
    (finding,) = said(use(saved(tmp_path, lora(f"lora_unet_{CROSS}", 2048, 640, rank=32))), NONE, sd15())
    assert finding.saw == (
        f'LoRA "style" was made for SDXL (lora_unet_{CROSS}.lora_down.weight is [32, 2048], which takes text 2048 wide)'
        ", the model is SD1.5 (down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight is [320, 768],"
        " which takes text 768 wide)"
    )


@pytest.mark.parametrize("metadata", [{"ss_base_model_version": "sdxl_base_v1-0"}, {"ss_v2": "True"}])
def test_what_the_trainer_noted_down_does_not_decide(tmp_path, metadata):
    file = saved(tmp_path, lora(f"lora_unet_{SQUARE}", 640, 640), metadata)
    assert codes(use(file), Reach(1), sd15()) == []


@pytest.mark.parametrize(
    "shapes",
    [
        lora("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 1024, 1024),
        {**lora("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 768, 768)}
        | lora("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", 1280, 1280),
        lora("lora_unet_something_new_0_attention", 999, 999),
        lora(f"lora_unet_{SQUARE}", 640, 640),
    ],
    ids=["SD2's text encoder", "SDXL's text encoders", "names of no family", "a width of three families"],
)
def test_text_encoders_alone_and_unknown_structures_are_not_said_to_be_another_familys(tmp_path, shapes):
    assert codes(use(saved(tmp_path, shapes)), NONE, sd15()) == ["LG302"]


def unusual(context: int) -> list[Place]:
    """A UNet of a width that no family has."""
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    return [place(on_meta(lambda: named({name: nn.Linear(context, 48)})))]


def test_where_families_are_unknown_the_widths_of_the_text_decide(tmp_path):
    file = saved(tmp_path, lora(f"lora_unet_{CROSS}", 96, 48))
    assert codes(use(file), Reach(1), unusual(96)) == []
    (finding,) = said(use(file), NONE, unusual(80))
    assert finding.code == "LG304"
    assert "made for another model (" in finding.saw and "is [8, 96], which takes text 96 wide" in finding.saw
    assert "the model is not that wide (" in finding.saw and "is [48, 80], which takes text 80 wide" in finding.saw


def test_one_side_unknown(tmp_path):
    (finding,) = said(use(saved(tmp_path, lora(f"lora_unet_{CROSS}", 2048, 640))), NONE, unusual(80))
    assert "made for SDXL (" in finding.saw and "not that wide (" in finding.saw
    (finding,) = said(use(saved(tmp_path, lora(f"lora_unet_{CROSS}", 96, 48))), NONE, sd15())
    assert "made for another model (" in finding.saw and "the model is SD1.5 (" in finding.saw


def test_without_a_model_nothing_is_compared(tmp_path):
    assert codes(use(saved(tmp_path, lora(f"lora_unet_{CROSS}", 2048, 640))), NONE, []) == ["LG302"]


# No effect, and not all of it.


def test_a_name_without_a_file(tmp_path):
    (finding,) = said(use(None, "nobody"), None, sd15())
    assert finding.code == "LG302" and 'LoRA "nobody"' in finding.saw and "no file of that name" in finding.saw
    assert "refresh" in finding.permanent_fix


@pytest.mark.parametrize("reach", [None, NONE])
@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt", "x.pt"])
def test_no_layer_is_the_models(tmp_path, name, reach):
    file = tmp_path / name
    saved(tmp_path, lora("lora_unet_elsewhere", 32, 32)).rename(file)
    (finding,) = said(use(file), reach, sd15())
    assert finding.code == "LG302"
    assert ("has not loaded its file" if reach is None else "the WebUI applies none of its") in finding.saw


@pytest.mark.parametrize("strengths", [(0,), (0.0, 0.0), (0.0, None)])
def test_strength_0_asks_for_nothing(tmp_path, strengths):
    file = saved(tmp_path, lora("lora_unet_elsewhere", 32, 32))
    for one in (use(file, "a", strengths), use(None, "a", strengths)):
        assert codes(one, NONE, sd15()) == codes(one, None, sd15()) == []


@pytest.mark.parametrize("strengths", [(), (None,), (0.0, 0.5), ("0@0,1@1",), (-1.0,)])
def test_any_other_strength_asks_for_something(tmp_path, strengths):
    assert codes(use(None, "a", strengths), None, sd15()) == ["LG302"]


@pytest.mark.parametrize("known", [True, False])
def test_a_part_of_it(tmp_path, known):
    """known: whether the host tells which weights it changes."""
    shapes = {**lora(f"lora_unet_{SQUARE}", 640, 640), **lora("lora_unet_elsewhere", 32, 32)}
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    reach = Reach(1, {"unet": frozenset({name})} if known else None)
    (finding,) = said(use(saved(tmp_path, shapes)), reach, sd15())
    assert finding.code == "LG303"
    assert finding.saw == (
        'LoRA "style" has 2 layers, of which the loaded model has 1; lora_unet_elsewhere is not among them'
    )
    assert finding.evidence == {
        "lora": "style",
        "layers": 2,
        "applied": 1,
        "missing": "lora_unet_elsewhere",
        "cause_key": "style",
    }


def test_a_missing_layer_is_not_named_where_names_differ(tmp_path):
    module = on_meta(DIFFUSERS["sd15"])
    file = saved(tmp_path, of_all_layers(module, "kohya"))
    (finding,) = said(use(file), Reach(5), [place(on_meta(OWN["sd15"]))])
    assert finding.code == "LG303" and finding.evidence["missing"] == ""


def test_a_damaged_file_is_said_to_be_damaged(tmp_path):
    shapes = {**lora(f"lora_unet_{SQUARE}", 640, 640), f"lora_unet_{CROSS}.lora_down.weight": (8, 768)}
    (finding,) = said(use(saved(tmp_path, shapes)), Reach(1), sd15())
    assert finding.code == "LG303"
    assert f"; it is damaged: lora_unet_{CROSS}.lora_down.weight is there without its up" in finding.saw


def text(number: str, count: int) -> dict[str, tuple[int, ...]]:
    names = (f"lora_te{number}_text_model_encoder_layers_{one}_self_attn_q_proj" for one in range(count))
    return {name: shape for layer in names for name, shape in lora(layer, 768, 768).items()}


def test_text_encoders_that_the_host_leaves_alone_are_no_fault(tmp_path):
    file = saved(tmp_path, {**lora(f"lora_unet_{SQUARE}", 640, 640), **text("", 3)})
    for count in (1, 3, 4):  # the UNet's layer, the text encoder's, and both
        assert codes(use(file), Reach(count), sd15()) == []
    assert codes(use(file), Reach(2), sd15()) == ["LG303"]


def test_a_lora_of_text_encoders_that_reaches_none_says_so(tmp_path):
    (finding,) = said(use(saved(tmp_path, text("", 3))), NONE, sd15())
    assert finding.code == "LG302" and "it changes text encoders only" in finding.saw


def test_layers_that_the_model_has_as_one_are_not_missed(tmp_path):
    """A LoRA of diffusers' FLUX.1 on the model as its makers wrote it, where one layer makes q, k and v."""
    double = "transformer.transformer_blocks.0.attn"
    names = [f"{double}.{one}" for one in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")]
    single = "transformer.single_transformer_blocks.0"
    names += [f"{single}.{one}" for one in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "norm.linear")]
    shapes = {name: shape for one in names for name, shape in peft(one, 3072, 3072).items()}
    file, places = saved(tmp_path, shapes), [place(on_meta(OWN["flux1"]), "transformer")]
    assert codes(use(file), Reach(4), places) == []
    assert codes(use(file), Reach(1), places) == ["LG303"]
    assert codes(use(file), Reach(4), [place(on_meta(DIFFUSERS["flux1"]), "transformer")]) == ["LG303"]


def test_a_file_that_brings_textual_inversions_has_an_effect_without_layers(tmp_path):
    shapes = {**lora("lora_unet_elsewhere", 32, 32), "bundle_emb.word.string_to_param.*": (2, 768)}
    assert codes(use(saved(tmp_path, shapes)), NONE, sd15()) == []


def test_a_file_that_is_no_lora(tmp_path):
    checkpoint = {name: tuple(tensor.shape) for name, tensor in on_meta(DIFFUSERS["sd15"]).state_dict().items()}
    (finding,) = said(use(saved(tmp_path, checkpoint)), NONE, sd15())
    assert finding.code == "LG302" and "holds no LoRA, but is of the kind checkpoint: " in finding.saw
    (finding,) = said(use(saved(tmp_path, {"something": (3, 3)})), None, sd15())
    assert finding.code == "LG302" and "holds no layers of a LoRA" in finding.saw


# Files that cannot be read.


def _zip(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pkl", b"x")


def _with_header(header: bytes, rest: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + rest


BAD = {
    "empty": (b"", "shorter than the length"),
    "short": (b"\x10\x00", "shorter than the length"),
    "cut": (struct.pack("<Q", 5000) + b'{"a":', "ends within its header"),
    "huge": (struct.pack("<Q", 1 << 62) + b"{}", "larger than 100 MB"),
    "pickle": (pickle.dumps({"state_dict": 1}), "a pickle"),
    "page": (b"<!DOCTYPE html><html>not found</html>", "a page from the web"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "was not downloaded"),
    "no JSON": (_with_header(b"{nothing"), "not JSON"),
    "a list": (_with_header(b"[1, 2]"), "not an object"),
    "deep": (_with_header(b'{"a":' * 50_000), "nested deeper"),
    "twice": (_with_header(b'{"a":{},"a":{}}'), "a name twice"),
    "markup": (_with_header(b'{"<script>\\n\\u001b[31m":{}}'), "control characters"),
    "no bytes": (_with_header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'), "is cut short"),
    "NaN": (_with_header(b'{"a":NaN}'), "not a whole one"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("reach", [None, NONE, Reach(3)])
def test_bad_files(tmp_path, kind, reach):
    content, reason = BAD[kind]
    file = tmp_path / "bad.safetensors"
    file.write_bytes(content)
    (finding,) = said(use(file), reach, sd15())
    assert finding.code == "LG306" and reason in finding.saw
    assert finding.saw.startswith('the file of LoRA "style" cannot be read: bad.safetensors ')
    assert finding.evidence == {"lora": "style", "file": "bad.safetensors", "cause_key": "style"}


def test_other_things_than_files(tmp_path):
    archive = tmp_path / "archive.SafeTensors"
    _zip(archive)
    (finding,) = said(use(archive), None, sd15())
    assert finding.code == "LG306" and "a zip archive" in finding.saw
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    assert codes(use(folder), None, sd15()) == codes(use(tmp_path / "gone.safetensors"), None, sd15()) == ["LG306"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.safetensors")
        assert codes(use(tmp_path / "pipe.safetensors"), None, sd15()) == ["LG306"]


@pytest.mark.parametrize("name", ["old.pt", "old.ckpt", "old.bin", "old"])
def test_other_formats_are_not_opened(tmp_path, name, monkeypatch):
    file = tmp_path / name
    file.write_bytes(pickle.dumps({"a": 1}))
    monkeypatch.setattr(lora_file, "read_header", pytest.fail)
    assert codes(use(file), Reach(3), sd15()) == []
    assert codes(use(file), None, sd15()) == ["LG302"]


def test_a_file_that_is_replaced_is_looked_at_again(tmp_path):
    file = saved(tmp_path, lora(f"lora_unet_{CROSS}", 2048, 640))
    assert codes(use(file), NONE, sd15()) == ["LG304"]
    time.sleep(0.01)
    saved(tmp_path, lora(f"lora_unet_{CROSS}", 768, 640))
    assert codes(use(file), Reach(1), sd15()) == []
    file.write_bytes(b"")
    assert codes(use(file), Reach(1), sd15()) == ["LG306"]
    file.unlink()
    assert codes(use(file), Reach(1), sd15()) == ["LG306"]
    saved(tmp_path, lora(f"lora_unet_{CROSS}", 768, 640))
    assert codes(use(file), Reach(1), sd15()) == []


def test_a_file_is_read_once_and_not_held_open(tmp_path):
    one = use(saved(tmp_path, lora(f"lora_unet_{CROSS}", 2048, 640)))
    before = said(one, NONE, sd15())
    if Path("/proc/self/fd").is_dir():
        held = [entry.readlink() for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
        assert one.file not in held
    one.file.unlink()
    assert said(one, NONE, sd15()) == before


def test_no_more_files_are_remembered_than_so_many(tmp_path):
    saved(tmp_path, lora("lora_unet_elsewhere", 32, 32))
    content = (tmp_path / "model.safetensors").read_bytes()
    for number in range(50):
        (tmp_path / f"{number}.safetensors").write_bytes(content)
        said(use(tmp_path / f"{number}.safetensors"), None, [])
    assert lora_file._remembered.cache_info().currsize == 32


def test_the_weights_are_not_read(tmp_path):
    """On the meta device there are none to be read, and this model has them there alone."""
    places = sd15()
    assert all(parameter.is_meta for parameter in places[0].owner.parameters()) and sampling_layers(places)
    assert codes(use(saved(tmp_path, lora(f"lora_unet_{CROSS}", 2048, 640))), NONE, places) == ["LG304"]


# Names, and silence.


TRICKS = [
    "<b>bold</b><script>alert(1)</script>",
    "../../../etc/passwd",
    "C:\\Windows\\system32",
    "a\nb\r\x1b[31mred\x00",
    "\u202egnp.exe",
    "x" * 10_000,
    "[red]rich[/red] %s {0}",
    "\ud800",
    "",
]


@pytest.mark.parametrize("name", TRICKS)
def test_names_give_one_line_each(tmp_path, name):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"")
    file = saved(tmp_path, lora(f"lora_unet_{CROSS}", 2048, 640))
    for one, reach in ((use(None, name), None), (use(bad, name), None), (use(file, name), NONE)):
        (finding,) = said(one, reach, sd15())
        assert len(finding.saw) < 700 and len(str(finding.evidence)) < 1200


def test_tensors_names_give_one_line(tmp_path):
    layer = "lora_unet_" + "<b>" * 3000 + f"_{CROSS}"
    (finding,) = said(use(saved(tmp_path, lora(layer, 2048, 640))), NONE, sd15())
    assert finding.code == "LG304" and len(finding.saw) < 700


def test_two_loras_are_two_findings(tmp_path):
    keys = {said(use(None, name), None, [])[0].key for name in ("a", "b", "x" * 200 + "a", "x" * 200 + "b")}
    assert len(keys) == 4


@settings(max_examples=200, deadline=None)
@given(name=st.text(max_size=400), strengths=st.tuples(st.none() | st.text() | st.floats()))
def test_no_name_breaks_it(name, strengths):
    found = said(LoraUse(name, None, strengths), None, [])
    assert len(found) == (strengths != (0,) and strengths != ("",))


def test_of_silenced_loras_nothing_is_said(tmp_path):
    quiet = silenced(" Style , other\r\nThird")
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"")
    for name in ("style", "STYLE", "Other", "third"):
        assert codes(use(bad, name), None, [], quiet) == codes(use(None, name), None, [], quiet) == []
    assert codes(use(bad, "styles"), None, [], quiet) == ["LG306"]


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("", set()),
        (None, set()),
        (",,\n ,", set()),
        ("a", {"a"}),
        ("A, b\nC c\r\n,d,", {"a", "b", "c c", "d"}),
        (["a"], set()),
        (7, set()),
    ],
)
def test_the_option_of_silenced_loras(option, names):
    assert silenced(option) == names


@settings(max_examples=200, deadline=None)
@given(option=st.text() | st.integers() | st.binary() | st.none() | st.lists(st.text()) | st.floats())
def test_no_option_breaks_it(option):
    assert all(name and name == name.strip() for name in silenced(option))


def test_a_real_look_takes_no_time_to_speak_of(tmp_path):
    module = on_meta(DIFFUSERS["sdxl"])
    one, places = use(saved(tmp_path, of_all_layers(module, "kohya"))), [place(module)]
    started = time.perf_counter()
    said(one, NONE, places)
    assert time.perf_counter() - started < 1
    assert torch.device("meta") == next(module.parameters()).device

"""Whatever becomes of a header, telling what it is raises nothing and is never sure of something wrong."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_family import ROWS, header, verdict_of, write

from lib_guard.files.families import family_of
from lib_guard.files.header import UnreadableFile, read_header


@pytest.mark.parametrize("row", ROWS)
def test_without_any_one_tensor_no_row_is_surely_something_else(row):
    shapes, kind = ROWS[row], row.partition(",")[0]
    whole = verdict_of(shapes)
    assert whole.kind == kind
    names = list(shapes)
    for name in names[:12] + names[12::29]:
        rest = verdict_of({other: shape for other, shape in shapes.items() if other != name})
        assert rest.kind in (kind, "unknown"), name
        if rest.confidence == "certain" and whole.candidates:
            assert set(rest.candidates) & set(whole.candidates), name


@pytest.mark.parametrize("row", ROWS)
def test_without_what_decided_no_row_is_surely_something_else(row):
    shapes, kind = dict(ROWS[row]), row.partition(",")[0]
    whole = verdict_of(shapes)
    for _ in range(4):
        found = verdict_of(shapes)
        assert found.kind in (kind, "unknown")
        if found.confidence == "certain" and whole.candidates:
            assert set(found.candidates) & set(whole.candidates)
        for evidence in found.evidence:
            shapes.pop(evidence.tensor, None)


SIZES = st.sampled_from([0, 1, 4, 16, 320, 640, 768, 1024, 1152, 1280, 1536, 2048, 3072, 12288, 2**40])
SHAPE = st.lists(SIZES, max_size=5).map(tuple)
CHANGES = st.lists(
    st.tuples(st.sampled_from(["drop", "shape", "rename", "copy"]), st.integers(0, 10_000), SHAPE, st.text(max_size=9)),
    max_size=6,
)


def changed(shapes, changes):
    shapes = dict(shapes)
    for what, number, shape, text in changes:
        if not shapes:
            break
        name = list(shapes)[number % len(shapes)]
        if what == "drop":
            del shapes[name]
        elif what == "shape":
            shapes[name] = shape
        elif what == "rename":
            middle = number % (len(name) + 1)
            shapes[name[:middle] + text + name[middle + 1 :]] = shapes.pop(name)
        else:
            shapes[f"{text}.{name}"] = shapes[name]
    return shapes


@settings(max_examples=500, deadline=None)
@given(row=st.sampled_from(sorted(ROWS)), changes=CHANGES)
def test_a_changed_header_is_told_or_not_and_nothing_is_raised(row, changes):
    found = verdict_of(changed(ROWS[row], changes))
    assert found.describe().isprintable() and len(found.describe()) < 400
    assert all(remark.isprintable() and len(remark) < 900 for remark in found.remarks)
    assert (found.family == "unknown") or found.family in found.candidates
    assert (found.confidence == "none") == (not found.candidates)
    if found.need is not None:
        assert found.need.describe().isprintable()


WORDS = st.sampled_from(
    [
        "lora_unet_",
        "lora_te1_",
        "unet.",
        "transformer.",
        "model.diffusion_model.",
        "image_proj.",
        "ip_adapter.",
        "decoder.",
        "vision_model.",
        "attn2",
        ".to_k",
        ".lora_down.weight",
        ".lora_up.weight",
        ".lora_A.weight",
        ".hada_w1_b",
        ".lokr_w1",
        ".oft_blocks",
        ".diff",
        ".a1.weight",
        ".on_input",
        "down_blocks.0.attentions.0.",
        "transformer_blocks.3.",
        "transformer_blocks_9_",
        "double_blocks.0.",
        "single_blocks_99_",
        "joint_blocks_37_",
        "layers.0.",
        "proj.weight",
        "norm.weight",
        "latents",
        "1.to_k_ip.weight",
        "conv_in.weight",
        "patch_embedding.weight",
        "encoder.layers.0.",
        "visual_projection.weight",
        "clip_l",
        "clip_g",
        "emb_params",
        "style_embedding",
        "lllite",
        "lora_controlnet",
        "\u0665",
        "999999999999",
        ".",
        "_",
    ]
)
NAME = st.lists(WORDS | st.text(max_size=5), max_size=6).map("".join)


@settings(max_examples=500, deadline=None)
@given(
    shapes=st.dictionaries(NAME, SHAPE, max_size=12), metadata=st.dictionaries(NAME, st.text(max_size=9), max_size=3)
)
def test_any_header_is_told_or_not_and_nothing_is_raised(shapes, metadata):
    found = family_of(header(shapes, metadata))
    assert found.describe().isprintable()
    assert (found.family == "unknown") or found.family in found.candidates


SAMPLES = ["lora, LoRA", "lora, LoKr", "ip_adapter, sd15", "vae, 4 channels, LDM", "controlnet, LDM SD1"]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=st.sampled_from(SAMPLES), flips=st.lists(st.tuples(st.integers(0, 4_000), st.integers(1, 255)), max_size=4))
def test_bytes_of_a_header_changed_end_in_a_verdict_or_a_reason(tmp_path, row, flips):
    path = write(tmp_path, ROWS[row])
    head = bytearray(path.read_bytes()[: 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]])
    for at, mask in flips:
        head[at % len(head)] ^= mask
    with path.open("r+b") as file:
        file.write(head)
    try:
        found = family_of(read_header(path))
    except UnreadableFile as error:
        assert str(error).isprintable() and str(tmp_path.parent) not in str(error)
    else:
        kind = row.partition(",")[0]
        assert found.kind in (kind, "unknown") or found.confidence != "certain"


def test_ten_times_as_many_tensors_as_a_lora_has_are_told_in_seconds(tmp_path):
    """The rules look at each name a few times, and at no pair of names."""
    layer = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q_{}.lora_{}.weight"
    shapes = {layer.format(n, part): (4, 4) for n in range(10_000) for part in ("down", "up")}
    long = {"lora_unet_" + "transformer_blocks_" * 5_000 + ".lora_down.weight": (4, 4)}
    start = time.perf_counter()
    path = write(Path(tmp_path), {**shapes, **long})
    assert family_of(read_header(path)).kind == "lora"
    assert time.perf_counter() - start < 30

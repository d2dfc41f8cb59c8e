"""`explain` tells from an error's text alone what caused it, and keeps silent about what it does not know."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_guard import explain as room
from lib_guard.__main__ import GOOD, PROBLEM, main
from lib_guard.explain import LONGEST, MOST, RULES, explain
from lib_guard.explain.dtypes import dtype_name
from lib_guard.findings import CODES

ROOT = Path(__file__).resolve().parents[2]


def size_mismatch(name: str, file: list[int], model: list[int]) -> str:
    return (
        f"size mismatch for {name}: copying a param with shape torch.Size({file}) from checkpoint, the shape in current"
        f" model is torch.Size({model})."
    )


def product(given: str, layer: str) -> str:
    return f"RuntimeError: mat1 and mat2 shapes cannot be multiplied ({given} and {layer})"


INDEX_PUT = (
    "Index put requires the source and destination dtypes match, got Half for the destination and Float for the source."
)
UPSAMPLE = "\"upsample_nearest2d_out_frame\" not implemented for 'BFloat16'"
NO_ADDMM_CPU = "RuntimeError: \"addmm_impl_cpu_\" not implemented for 'Half'"

#: What the machine said in reports that docs/coverage.md marks with `explain`, and words of the right cause.
REPORTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "R039": ("[LORA] LoRA version mismatch for SDXL", ("More than 12", "no matter of versions")),
    "R046": (product("257x1664", "1280x2048"), ("is OpenCLIP ViT-bigG", "SDXL FaceID plus", "made for OpenCLIP ViT-H")),
    "R047": (
        size_mismatch("proj.weight", [3072, 1024], [3072, 768]),
        ("is CLIP ViT-L", "SD1.5,", "made for OpenCLIP ViT-H"),
    ),
    "R048": (
        size_mismatch("proj.weight", [3072, 1024], [3072, 1280]),
        ("is OpenCLIP ViT-bigG", "SD1.5,", "made for OpenCLIP ViT-H"),
    ),
    "R049": (
        size_mismatch("proj.weight", [8192, 1280], [8192, 1024]),
        ("is OpenCLIP ViT-H", "SDXL,", "made for OpenCLIP ViT-bigG"),
    ),
    "R051": (
        size_mismatch("proj_in.weight", [768, 1280], [768, 1664]),
        ("is OpenCLIP ViT-bigG", "SD1.5 plus,", "made for OpenCLIP ViT-H"),
    ),
    # 1668 is the reporter's; it is no encoder's, so that the one in place is not named.
    "R052": (
        size_mismatch("proj_in.weight", [1280, 1280], [1280, 1668]),
        ("not the one that the IP-Adapter needs", "SDXL plus,", "made for OpenCLIP ViT-H"),
    ),
    "R053": (
        size_mismatch("layers.3.0.to_q.weight", [1280, 1280], [768, 2048]),
        ("another kind of projection", "No image encoder changes that"),
    ),
    "R059": (
        size_mismatch("proj_in.weight", [768, 1280], [768, 1664]),
        ("is OpenCLIP ViT-bigG", "SD1.5 plus,", "made for OpenCLIP ViT-H"),
    ),
    "R061": (
        size_mismatch("proj_in.weight", [768, 1280], [768, 1024]),
        ("is CLIP ViT-L", "SD1.5 plus,", "made for OpenCLIP ViT-H"),
    ),
    "R064": (
        size_mismatch("proj_in.weight", [1280, 1280], [1280, 1664]),
        ("is OpenCLIP ViT-bigG", "SDXL plus,", "made for OpenCLIP ViT-H"),
    ),
    "R086": ("input types 'tensor<1x8320x1xf16>' and 'tensor<1xf32>' are not broadcast compatible", ("norm on a Mac",)),
    "R087": (
        "Input types 'tensor<1x257x1xf16>' and 'tensor<1xf32>' are not broadcast compatible",
        ("norm on a Mac", "constant of its own in float32"),
    ),
    "R088": (product("1x1280", "768x16384"), ("is OpenCLIP ViT-bigG", "FLUX.1", "made for CLIP ViT-L")),
    "R089": (product("1x1024", "768x16384"), ("is OpenCLIP ViT-H", "FLUX.1", "made for CLIP ViT-L")),
    "R091": (
        "lora key not loaded: lora_unet_up_blocks_2_attentions_2_transformer_blocks_0_attn1_to_k.weight / .on_input",
        ("an (IA)^3", "does not apply"),
    ),
    "R092": (
        "lora key not loaded lora_te2_text_model_encoder_layers_8_self_attn_q_proj.lokr_w1",
        ("a LoKr", "at the second text encoder"),
    ),
    "R169": ("Missing CLIPVision model.", ("by the NAME of its file",)),
    "R171": (
        size_mismatch("proj_in.weight", [768, 1280], [768, 1664]),
        ("is OpenCLIP ViT-bigG", "SD1.5 plus,", "made for OpenCLIP ViT-H"),
    ),
    "R172": ("Missing CLIPVision model", ("by the NAME of its file",)),
    "R257": (NO_ADDMM_CPU, ("no kernel", "float16")),
    "R258": (NO_ADDMM_CPU, ("no kernel", "float16")),
    "R262": ("RuntimeError: \"slow_conv2d_cpu\" not implemented for 'Half'", ("no kernel", "float16")),
    "R266": (UPSAMPLE, ("no kernel", "bfloat16")),
    "R267": (UPSAMPLE, ("no kernel", "bfloat16")),
    "R269": (
        "ERROR lora diffusion_model.single_blocks.37.linear2.weight \"addmm_cuda\" not implemented for 'Float8_e4m3fn'",
        ("float8, in which weights are only kept",),
    ),
    "R271": ("addmm_cuda\" not implemented for 'Float8_e4m3fn'", ("float8, in which weights are only kept",)),
    "R272": ("\"mul_cuda\" not implemented for 'Float8_e4m3fn'", ("float8, in which weights are only kept",)),
    "R273": ("\"addmm_cuda\" not implemented for 'Float8_e4m3fn'", ("float8, in which weights are only kept",)),
    "R274": ("\"addmm_cuda\" not implemented for 'Float8_e4m3fn'", ("float8, in which weights are only kept",)),
    "R276": (INDEX_PUT, ("textual-inversion embedding of float32", "in float16")),
    "R277": (INDEX_PUT, ("textual-inversion embedding of float32", "in float16")),
    "R287": ("RuntimeError: Cannot set version_counter for inference tensor", ("made in inference mode", "LoRA")),
}


def names_the_cause(report: str) -> bool:
    """Whether `explain` finds one thing in a report's text, and it is the right one."""
    text, words = REPORTS[report]
    return [all(word in found.cause for word in words) for found in explain(text)] == [True]


@pytest.mark.parametrize("report", REPORTS)
def test_reports_are_explained(report):
    assert names_the_cause(report), explain(REPORTS[report][0])


DIFFUSERS_CALL = (
    'Traceback (most recent call last):\n  File "diffusers/models/unets/unet_2d_condition.py", line 1100, in {}\n'
    "    {}\nTypeError: argument of type 'NoneType' is not iterable"
)
LORA_CALL = 'Traceback (most recent call last):\n  File "extensions-builtin/Lora/networks.py", line 1, in f\n'

#: Every kind of message: text, code, words of cause or evidence.
KINDS = [
    # Image encoders: 1280 is ViT-bigG's embedding and ViT-H's hidden state.
    (product("2x1024", "1280x3072"), "LG401", "SD1.5 (ViT-G), was made for OpenCLIP ViT-bigG"),
    (product("1x1280", "1024x8192"), "LG401", "SDXL (ViT-H), was made for OpenCLIP ViT-H"),
    (product("2x1280", "768x65536"), "LG401", "FLUX.1 (XLabs v2), was made for CLIP ViT-L"),
    (product("514x1024", "1280x768"), "LG401", "SD1.5 plus or SD1.5 FaceID plus, was made for OpenCLIP ViT-H"),
    (product("257x1664", "1280x1280"), "LG401", "SDXL plus or SD1.5 full face, was made for OpenCLIP ViT-H"),
    (product("257x1280", "1024x2048"), "LG401", "Kolors plus, was made for CLIP ViT-L 336"),
    (product("577x1024", "1280x1280"), "LG401", "in place is CLIP ViT-L 336"),
    (product("1x512", "1024x3072"), "LG402", "in place is InsightFace"),
    (product("1x1024", "512x1024"), "LG402", "FaceID, was made for InsightFace"),
    (size_mismatch("image_proj.proj.weight", [3072, 1280], [3072, 1024]), "LG401", "was made for OpenCLIP ViT-bigG"),
    (size_mismatch("proj.0.weight", [1280, 1280], [1664, 1664]), "LG401", "SD1.5 full face"),
    (size_mismatch("perceiver_resampler.proj_in.weight", [2048, 1280], [2048, 1664]), "LG401", "SDXL FaceID plus"),
    (size_mismatch("proj.weight", [3072, 1024], [8192, 1280]), "LG406", "was made for SD1.5"),
    (size_mismatch("latents", [1, 16, 1280], [1, 4, 1280]), "", "another number of tokens"),
    (size_mismatch("latents", [1, 16, 768], [1, 16, 1280]), "", "another base model or kind"),
    # Text of another family.
    (product("77x2048", "768x320"), "", "Layers of SD1.5 were given the text of SDXL: mostly a ControlNet"),
    (product("154x768", "1024x320"), "", "Layers of SD2 were given the text of SD1.5"),
    (product("77x768", "2048x640"), "", "Layers of SDXL were given the text of SD1.5"),
    (product("77x2048", "768x32"), "LG304", "made for SD1.5 is applied to a model of SDXL"),
    ("The size of tensor a (2048) must match the size of tensor b (768) at non-singleton dimension 1", "LG304", "SDXL"),
    (
        LORA_CALL + "The size of tensor a (768) must match the size of tensor b (1024) at non-singleton dimension 1",
        "LG304",
        "made for SD2 is applied to a model of SD1.5",
    ),
    (
        size_mismatch("down_blocks.1.attentions.0.attn2.to_k.lora_A.style.weight", [8, 768], [8, 2048]),
        "LG304",
        "made for SD1.5 is applied to a model of SDXL",
    ),
    # Adapters in the wrong place.
    (DIFFUSERS_CALL.format("f", 'if "image_embeds" not in added_cond_kwargs:'), "LG404", "An IP-Adapter of an earlier"),
    (DIFFUSERS_CALL.format("forward", "x"), "LG404", "Most likely: An IP-Adapter"),
    (
        "dtype = next(self.image_encoder.parameters()).dtype\n'NoneType' object has no attribute 'parameters'",
        "LG408",
        "has no image encoder",
    ),
    ("'NoneType' object has no attribute 'image_projection_layers'", "LG408", "has no projection for images"),
    ("Exception: ClipVision model not found.", "LG405", "by the NAME of its file"),
    # LoRAs of which tensors are not known.
    (
        "Failed to match keys when loading Lora a b.safetensors: ['lora_unet_down_blocks_0_downsamplers_0_conv.alpha']",
        "LG303",
        "a LoCon",
    ),
    ("Failed to match keys when loading network x: {'lora_unet_a.hada_w1_a': 'a'}", "LG303", "a LoHa"),
    ("lora key not loaded: lora_unet_mid.oft_blocks", "LG303", "an OFT"),
    (
        "lora key not loaded: lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
        "LG303",
        "for the text encoder",
    ),
    (
        "lora key not loaded: lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight",
        "LG304",
        "made for SD1.5 or SD2",
    ),
    # Precisions.
    (
        "Input type (torch.cuda.HalfTensor) and weight type (torch.cuda.FloatTensor) should be the same",
        "LG112",
        "float",
    ),
    (
        "Input type (struct c10::Half) and bias type (float) should be the same",
        "LG112",
        "given float16, and its weights",
    ),
    (
        "in decode_first_stage\nInput type (float) and bias type (struct c10::BFloat16) should be the same",
        "LG101",
        "The VAE",
    ),
    ("in encode_first_stage\nInput type (float) and bias type (c10::Half) should be the same", "LG102", "The VAE"),
    ("expected scalar type Half but found Float", "LG112", "wanted float16 and found float32"),
    ("mat1 and mat2 must have the same dtype", "LG112", "differ in dtype"),
    ("mat1 and mat2 must have the same dtype, but got Float and Half", "LG112", "of float32 and float16"),
    ("expected m1 and m2 to have the same dtype, but got: float != c10::BFloat16", "LG112", "of float32 and bfloat16"),
    ("mixed dtype (CPU): expect parameter to have scalar type of Float", "LG112", "a norm on the CPU"),
    ("input types 'tensor<2x1280xf32>' and 'tensor<1280xf16>' are not broadcast compatible", "LG112", "Mac's GPU met"),
    (
        "Expected query, key, and value to have the same dtype, but got query.dtype: c10::Half key.dtype: float and"
        " value.dtype: float instead.",
        "LG112",
        "query is float16, its keys are float32",
    ),
    ("expected query, key and value to have the same dtype", "LG112", "query, keys and values differ"),
    (INDEX_PUT, "LG113", "textual-inversion"),
    (NO_ADDMM_CPU, "LG114", "no kernel"),
    # Numbers that are not finite.
    ("modules.devices.NansException: A tensor with all NaNs was produced in VAE.", "LG201", "The VAE overflowed"),
    ("NansException: A tensor with NaNs was produced in Unet.", "LG202", "The latent is not finite"),
    ("modules.devices.NansException", "", "Whether the VAE overflowed"),
    ("RuntimeWarning: invalid value encountered in cast x_sample.astype(np.uint8)", "", "Whether the VAE overflowed"),
]


@pytest.mark.parametrize(("text", "code", "words"), KINDS, ids=range(len(KINDS)))
def test_a_kind_of_message_is_told(text, code, words):
    found = explain(text)
    assert [one.code for one in found] == [code] and words in f"{found[0].cause} {found[0].evidence}", found
    assert found[0].cure.endswith(".") and found[0].evidence


@pytest.mark.parametrize(("text", "code"), [kind[:2] for kind in KINDS], ids=range(len(KINDS)))
def test_the_order_of_the_rules_does_not_matter(monkeypatch, text, code):
    told = explain(text)
    monkeypatch.setattr(room, "RULES", tuple(reversed(RULES)))
    assert explain(text) == told


def test_codes_are_those_of_libguard():
    assert {code for _, code, _ in KINDS} - {""} <= CODES.keys()


UNKNOWN = [
    "",
    "77x2048 and 768x320",
    "CUDA out of memory. Tried to allocate 20.00 MiB",
    "KeyError: 'proj_in.weight'",
    "TypeError: argument of type 'NoneType' is not iterable",
    "TypeError: 'NoneType' object is not iterable",
    "ipadapter.py image_embeds \"TypeError: 'NoneType' object is not iterable\"",
    DIFFUSERS_CALL.format("forward", 'if "text_embeds" not in added_cond_kwargs:'),
    # Another error's traceback is no context.
    "\"image_embeds\" Traceback (most recent call last): x TypeError: argument of type 'NoneType' is not iterable",
    "AttributeError: 'NoneType' object has no attribute 'parameters'",
    "lora key not loaded",
    "lora key not loaded: diffusion_model.something.new.weight",
    "Failed to match keys when loading network x: {'a.b': 'c'}",
    # Widths that are no family's.
    product("2x1000", "1280x3072"),
    product("2x1024", "1280x3000"),
    product("2x1024", "1111x3072"),
    product("257x1668", "1280x2048"),
    product("77x999", "768x320"),
    product("8160x64", "1x98304"),
    product("1x768", "2816x1280"),
    # Layers of text encoders, which are as wide as projections and texts.
    product("77x1024", "768x3072"),
    product("77x768", "1024x1024"),
    product("77x1024", "768x768"),
    # As many rows as neither a picture's places nor a prompt has.
    product("4096x1024", "1280x3072"),
    product("78x2048", "768x320"),
    size_mismatch("proj.weight", [3072, 999], [3072, 1024]),
    size_mismatch("proj.weight", [768, 3, 16, 16], [1024, 3, 14, 14]),
    size_mismatch("down_blocks.0.attentions.0.proj_in.weight", [768, 1280], [768, 1664]),
    size_mismatch("embed.weight", [77, 768], [77, 1024]),
    "size mismatch for proj_in.weight: copying a param with shape torch.Size([1280, 1280]) from checkpoint ...",
    "The size of tensor a (88) must match the size of tensor b (86) at non-singleton dimension 3",
    "The size of tensor a (2048) must match the size of tensor b (768) at non-singleton dimension 3",
    "The size of tensor a (1024) must match the size of tensor b (768) at non-singleton dimension 1",
    "The size of tensor a (2048) must match the size of tensor b (77) at non-singleton dimension 1",
    # Other types than floating ones, and the same one on two devices.
    "expected scalar type Long but found Float",
    "Input type (torch.cuda.FloatTensor) and weight type (torch.FloatTensor) should be the same",
    "\"log_softmax_lastdim_kernel_impl\" not implemented for 'Long'",
]


@pytest.mark.parametrize("text", UNKNOWN)
def test_what_is_not_known_stays_unknown(text):
    assert explain(text) == []


def test_ordinary_log_lines_are_no_errors():
    log = """
    Python 3.10.14 | Version: v1.10.1 | Launching Web UI with arguments: --no-half-vae --xformers --upcast-sampling
    Loading weights [6ce0161689] from models/Stable-diffusion/v1-5-pruned-emaonly.safetensors
    Applying attention optimization: xformers... done. Model loaded in 3.1s (load weights from disk: 0.5s).
    2024-01-01 ControlNet - INFO - Loading model: ip-adapter-plus_sd15 [c817b455]
    ControlNet - INFO - using preprocessor: ip-adapter_clip_sd15; image_proj.proj_in.weight [768, 1280]
    [LORA] Loading a.safetensors for KModel-UNet with 722 keys at weight 1.0 (skipped 0 keys)
    mat1 and mat2, dtype float16, NaN check on, cast to bfloat16, size 77x768, invalid value
    100%|##########| 20/20 [00:02<00:00, 9.03it/s] Total progress: 20/20
    """
    assert explain(log) == []


def test_an_error_is_found_in_a_pasted_console():
    """With colours, with lines that the console has broken, and in the order in which they stand."""
    text = (
        "INFO\n\x1b[31mRuntimeError: mat1 and mat2 shapes\n   cannot be multiplied (2x1024\nand 1280x3072)\x1b[0m"
        "\n...\nA tensor with all NaNs was produced in Unet. This could be\n"
    )
    assert [found.code for found in explain(text)] == ["LG401", "LG202"]
    assert [found.code for found in explain(text * 50)] == ["LG401", "LG202"]


def test_a_file_that_fits_nowhere_is_told_once():
    """A whole loading error names the entrance as well as what lies inside; the next one is another file's."""
    whole = "Error(s) in loading state_dict for Resampler: " + " ".join(
        [
            size_mismatch("proj_in.weight", [1280, 1280], [2048, 1664]),
            *(size_mismatch(f"layers.{n}.0.to_q.weight", [1280, 1280], [768, 2048]) for n in range(4)),
        ]
    )
    assert [found.code for found in explain(whole)] == [""]
    next_one = "Error(s) in loading state_dict for R: " + size_mismatch("proj_in.weight", [768, 1280], [768, 1664])
    assert [found.code for found in explain(whole + next_one)] == ["", "LG401"]


def test_only_so_many_are_told_and_the_last_ones():
    many = " ".join(product("77x2048", f"768x{rank}") for rank in (320, 640)) + " ".join(kind[0] for kind in KINDS)
    assert len(explain(many)) == MOST
    assert explain(many)[-1].cause == explain(KINDS[-1][0])[0].cause


def test_of_a_long_text_the_end_is_read():
    error = product("2x1024", "1280x3072")
    assert explain(error + " x" * LONGEST) == []
    assert [found.code for found in explain("x " * 5_000_000 + error)] == ["LG401"]


#: Beginnings of what the rules look for, each over and over: what makes patterns slow that go back and forth.
BEGINNINGS = [
    "mat1 and mat2 shapes cannot be multiplied (",
    "mat1 and mat2 must have the same dtype, but got a ",
    "size mismatch for " + "a." * 100,
    size_mismatch("layers.1.0.to_q.weight", [1, 1, 1, 1, 1, 1], [1, 1])[:-4],
    "Input type (struct c10::",
    "input types 'tensor<1x1x1x1x1x1x",
    "query.dtype: a key.dtype: ",
    "expected scalar type a but found ",
    "lora key not loaded lora_unet_" + "a" * 80,
    "Failed to match keys when loading lora ",
    "argument of type 'NoneType' is not iterable ",
    "The size of tensor a (1024) must match the size of tensor b (768) at non-singleton dimension 1 ",
    "Error(s) in loading state_dict",
    "\x1b]",
    "\x1b[0;",
    "a" * 70 + " ",
    "_",
    "1x",
]


@pytest.mark.parametrize("beginning", BEGINNINGS, ids=range(len(BEGINNINGS)))
def test_no_text_is_slow(beginning):
    text = beginning * (10_000_000 // len(beginning))
    start = time.perf_counter()
    explain(text)
    assert time.perf_counter() - start < 5


def test_nothing_of_the_text_is_echoed_but_what_was_matched():
    hostile = '<script>alert(1)</script>\x1b[2J\u202e\x00"; rm -rf ~ secret prompt '
    for kind in KINDS:
        found = explain(hostile + kind[0] + hostile)
        said = "".join("".join(vars(one).values()) for one in found)
        assert found and said.isprintable() and not any(word in said for word in ("<", "secret", "rm -rf", "alert"))
    long = explain("lora key not loaded: lora_unet_" + "a" * 60 + "_resnets_0_conv1.alpha")
    assert len(long) == 1 and "…" in long[0].evidence and len(long[0].evidence) < 160


FRAGMENTS = st.sampled_from([*(kind[0] for kind in KINDS), *(kind[0][:-9] for kind in KINDS), *BEGINNINGS])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.text(), FRAGMENTS), max_size=12))
def test_no_text_raises(parts):
    found = explain("".join(parts))
    assert len(found) <= MOST and all(one.code in {"", *CODES} and one.cause for one in found)


@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        ("c10::Half", "float16"),
        ("torch.cuda.HalfTensor", "float16"),
        ("MPSFloatType", "float32"),
        ("struct c10::BFloat16", "bfloat16"),
        ("torch.float16", "float16"),
        ("Float8_e4m3fn", "float8"),
        ("Double", "float64"),
        ("Long", ""),
    ],
)
def test_a_dtype_is_known_by_any_of_its_names(spelled, name):
    assert dtype_name(spelled) == name


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["explain", *arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_command_tells_it_in_lines(capsys):
    status, out, err = asked(capsys, *product("2x1024", "1280x3072").split())
    assert (status, err) == (GOOD, "")
    assert [line[:10] for line in out.splitlines()] == ["Cause     ", "Shows     ", "Cure      ", "LibGuard  "]
    assert out.splitlines()[-1] == "LibGuard  LG401 docs/codes.md#lg401"


def test_without_a_code_none_is_said(capsys):
    assert "LibGuard  " not in asked(capsys, product("77x2048", "768x320"))[1]


def test_json_holds_the_same_as_data(capsys):
    status, out, _ = asked(capsys, product("2x1024", "1280x3072"), "--json")
    (found,) = json.loads(out)["explanations"]
    assert status == GOOD and found["code"] == "LG401" and found.keys() == {"code", "cause", "evidence", "cure"}
    status, out, err = asked(capsys, "hello", "--json")
    assert (status, json.loads(out), err) == (PROBLEM, {"explanations": []}, "")


def test_an_unknown_error_is_said_to_be_unknown(capsys):
    status, out, err = asked(capsys, "hello")
    assert (status, out, err.count("\n")) == (PROBLEM, "", 1) and "does not know" in err


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_without_a_text_the_input_is_read(capsys, monkeypatch, arguments):
    monkeypatch.setattr(sys, "stdin", io.StringIO("x" * 3 * LONGEST + " " + product("2x1024", "1280x3072")))
    status, out, err = asked(capsys, *arguments)
    assert (status, err) == (GOOD, "") and "LG401" in out


def run(text: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """As a command, where no package is installed: -S leaves them out, -E the variables that would bring them back."""
    command = [sys.executable, "-S", "-E", *arguments]
    return subprocess.run(command, check=False, cwd=ROOT, capture_output=True, input=text)


def test_as_a_command_without_torch():
    said = product("2x1024", "1280x3072").encode()
    ran = run(b"\xff\xfe\x00 broken \x80 " + said, "-m", "lib_guard", "explain")
    assert ran.returncode == GOOD and b"OpenCLIP ViT-bigG" in ran.stdout, ran.stderr
    ran = run(b"nothing \xff known", "-m", "lib_guard", "explain", "-")
    assert ran.returncode == PROBLEM and ran.stdout == b"" and ran.stderr.count(b"\n") == 1


def test_torch_is_not_even_asked_for():
    block = "import sys; sys.modules['torch'] = None; from lib_guard.__main__ import main; "
    ran = run(b"", "-c", f"{block}sys.exit(main(['explain', 'Missing CLIPVision model']))")
    assert ran.returncode == GOOD and b"LG405" in ran.stdout, ran.stderr

"""A safetensors header is read without the library; what it refuses, and a little more, is refused in one line."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lib_guard.files.header import TensorEntry, UnreadableFile, read_header

ROOT = Path(__file__).resolve().parents[2]
FOUR = b"\0" * 16


def raw(folder: Path, header: object, body: bytes = b"", claimed: int | None = None) -> Path:
    """A file with this header, whatever it is, and a length field of its own."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if claimed is None else claimed) + text + body)
    return path


def entry(start: int, end: int, shape: object, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def the_library_reads(path: Path) -> bool:
    try:
        with safe_open(str(path), framework="np") as file:
            file.keys()
    except (SafetensorError, OSError):
        return False
    return True


# What is read.


def test_a_file_of_the_library_is_read_as_it_was_written(tmp_path):
    tensors = {
        "b": torch.zeros(2, 3, dtype=torch.bfloat16),
        "a": torch.zeros(4),
        "scalar": torch.tensor(1.0),
        "empty": torch.zeros(0, 7, dtype=torch.float16),
        "i": torch.zeros(5, dtype=torch.int8),
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata={"ss_v2": "True", "ключ": "值"})
    header = read_header(path)
    assert {name: found.shape for name, found in header.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    assert {name: found.dtype for name, found in header.tensors.items()} == {
        "b": "BF16",
        "a": "F32",
        "scalar": "F32",
        "empty": "F16",
        "i": "I8",
    }
    assert header.metadata == {"ss_v2": "True", "ключ": "值"}
    spans = [(found.start, found.end) for found in header.tensors.values()]
    assert max(end for _, end in spans) == sum(end - start for start, end in spans) == 12 + 16 + 4 + 5


def test_the_order_of_the_file_is_kept(tmp_path):
    header = read_header(raw(tmp_path, {"z": entry(4, 8, [1]), "a": entry(0, 4, [1])}, b"\0" * 8))
    assert list(header.tensors) == ["z", "a"] and header.tensors["z"] == TensorEntry("F32", (1,), 4, 8)


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        ("C64", [2], 16),
        ("F64", [2], 16),
        ("U32", [4], 16),
        ("U16", [8], 16),
        ("F8_E4M3", [16], 16),
        ("F8_E5M2FNUZ", [16], 16),
        ("F8_E8M0", [16], 16),
        ("BOOL", [16], 16),
        ("F6_E2M3", [8], 6),
        ("F4", [32], 16),
    ],
)
def test_every_dtype_of_the_format_is_known_by_its_size(tmp_path, dtype, shape, size):
    path = raw(tmp_path, {"a": entry(0, size, shape, dtype)}, b"\0" * size)
    assert the_library_reads(path) and read_header(path).tensors["a"].dtype == dtype
    shape[0] += 2
    with pytest.raises(UnreadableFile, match="not as many as its shape asks for"):
        read_header(raw(tmp_path, {"a": entry(0, size, shape, dtype)}, b"\0" * size))


@pytest.mark.parametrize(
    "header",
    [
        {},
        b"{}      ",
        b'  {"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        {"__metadata__": None, "a": entry(0, 16, [4])},
        {"a": {**entry(0, 16, [4]), "note": "x"}},
        {"<b>&amp;</b>": entry(0, 16, [4])},
        {"": entry(0, 16, [4])},
    ],
    ids=["empty", "padded", "padded before", "no metadata", "a word more", "markup", "no name"],
)
def test_what_is_odd_but_readable_is_read(tmp_path, header):
    path = raw(tmp_path, header, b"" if header in ({}, b"{}      ") else FOUR)
    assert the_library_reads(path)
    assert len(read_header(path).tensors) == (0 if header in ({}, b"{}      ") else 1)


@pytest.mark.skipif(os.name == "nt", reason="files with holes are not made so here")
def test_nothing_but_the_header_is_read(tmp_path):
    path = raw(tmp_path, {"a": entry(0, 2**38, [2**36])})
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 2**38)
    start = time.perf_counter()
    assert read_header(path).tensors["a"].shape == (2**36,)
    assert time.perf_counter() - start < 5


def test_reading_a_header_and_telling_its_family_needs_no_torch(tmp_path):
    path = raw(tmp_path, {"a": entry(0, 16, [4])}, FOUR)
    code = (
        "import sys; from pathlib import Path; from lib_guard.files.header import read_header;"
        "from lib_guard.files.families import family_of;"
        f"print(family_of(read_header(Path({str(path)!r}))).kind, 'torch' in sys.modules, 'safetensors' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-S", "-E", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["unknown", "False", "False"]


# What is refused.


def shorten(path: Path, size: int, end: bool = False) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[:-size] if end else content[:size])
    return path


def nested(depth: int, of: bytes = b'{"a":') -> bytes:
    return of * depth + b"1" + (b"}" if of.startswith(b"{") else b"]") * depth


ONE = {"a": entry(0, 16, [4])}
REFUSED = {
    "empty": (lambda f: raw(f, b"", claimed=0), "header is not JSON"),
    "shorter than a length": (lambda f: shorten(raw(f, {}), 3), "shorter than the length"),
    "truncated in the numbers": (lambda f: shorten(raw(f, ONE, FOUR), 6, end=True), "of 16 bytes of its tensors 10"),
    "truncated in the header": (lambda f: shorten(raw(f, ONE), 20), "ends within its header"),
    "bytes left over": (lambda f: raw(f, ONE, FOUR + FOUR), "16 bytes at its end belong to no tensor"),
    "header longer than the file": (lambda f: raw(f, ONE, FOUR, claimed=10_000), "ends within its header"),
    "header of 200 MB claimed": (lambda f: raw(f, {}, claimed=200_000_000), "larger than 100 MB"),
    "header of 2^64 - 1 claimed": (lambda f: raw(f, {}, claimed=2**64 - 1), "larger than 100 MB"),
    "header is no JSON": (lambda f: raw(f, b"hello, world"), "header is not JSON"),
    "header ends early": (lambda f: raw(f, b'{"a":{"dtype":"F32","shape":[4]'), "nested|not JSON"),
    "header goes on": (lambda f: raw(f, b"{}\0\0"), "header is not JSON"),
    "header is no UTF-8": (lambda f: raw(f, b'{"\xff\xfe": 1}'), "header is not UTF-8"),
    "header is a list": (lambda f: raw(f, [1, 2, 3]), "not an object"),
    "header is a number": (lambda f: raw(f, b"7"), "not an object"),
    "nested objects": (lambda f: raw(f, nested(200_000)), "nested deeper"),
    "nested lists": (lambda f: raw(f, nested(200_000, b"[")), "nested deeper"),
    "nested in metadata": (lambda f: raw(f, b'{"__metadata__":' + nested(50_000) + b"}"), "nested deeper"),
    "nested in a shape": (lambda f: raw(f, b'{"a":{"dtype":"F32","shape":' + nested(50_000, b"[") + b"}}"), "nested"),
    "lists by the million": (lambda f: raw(f, b'{"a":[' + b"[]," * 300_000 + b"[]]}"), "nested deeper"),
    "a string without end": (lambda f: raw(f, b'{"' + b'\\"' * 500_000), "header is not JSON"),
    "a string that ends in a backslash": (lambda f: raw(f, b'{"a\\'), "header is not JSON"),
    "a number of a million digits": (lambda f: raw(f, b'{"a":' + b"9" * 1_000_000 + b"}"), "number that is too large"),
    "a fraction": (lambda f: raw(f, {"a": entry(0, 16, [4.0])}, FOUR), "not a whole one"),
    "not a number": (lambda f: raw(f, {"a": entry(0, 16, [float("nan")])}, FOUR), "not a whole one"),
    "metadata of numbers": (lambda f: raw(f, {"__metadata__": {"a": 1}}), "metadata"),
    "metadata is text": (lambda f: raw(f, {"__metadata__": "a"}), "metadata"),
    "a tensor is a number": (lambda f: raw(f, {"a": 1}), "does not describe the tensor a"),
    "no dtype": (lambda f: raw(f, {"a": {"shape": [4], "data_offsets": [0, 16]}}, FOUR), "does not describe"),
    "no shape": (lambda f: raw(f, {"a": {"dtype": "F32", "data_offsets": [0, 16]}}, FOUR), "does not describe"),
    "no offsets": (lambda f: raw(f, {"a": {"dtype": "F32", "shape": [4]}}, FOUR), "does not describe"),
    "three offsets": (lambda f: raw(f, {"a": {**ONE["a"], "data_offsets": [0, 8, 16]}}, FOUR), "does not describe"),
    "a shape of truths": (lambda f: raw(f, {"a": entry(0, 4, [True])}, FOUR[:4]), "does not describe"),
    "a dtype of a number": (lambda f: raw(f, {"a": {**ONE["a"], "dtype": 7}}, FOUR), "does not describe"),
    "an unknown dtype": (lambda f: raw(f, {"a": entry(0, 16, [4], "F128")}, FOUR), "dtype F128"),
    "overlapping": (lambda f: raw(f, {**ONE, "b": entry(8, 24, [4])}, FOUR + FOUR[:8]), "overlap"),
    "same numbers twice": (lambda f: raw(f, {**ONE, "b": entry(0, 16, [4])}, FOUR), "overlap"),
    "a hole": (lambda f: raw(f, {"a": entry(4, 16, [3])}, FOUR), "leave a hole"),
    "backwards": (lambda f: raw(f, {"a": entry(16, 0, [4])}, FOUR), "not as many as its shape"),
    "a negative offset": (lambda f: raw(f, {"a": entry(-16, 0, [4])}, FOUR), "does not describe"),
    "beyond the file": (lambda f: raw(f, {"a": entry(0, 160, [40])}, FOUR), "of 160 bytes of its tensors 16"),
    "another size than the shape": (lambda f: raw(f, {"a": entry(0, 16, [5])}, FOUR), "not as many as its shape"),
    "a negative size": (lambda f: raw(f, {"a": entry(0, 16, [-4])}, FOUR), "does not describe"),
    "more numbers than can be counted": (lambda f: raw(f, {"a": entry(0, 16, [2**62] * 9999)}, FOUR), "not as many"),
    "half a byte": (lambda f: raw(f, {"a": entry(0, 1, [1], "F4")}, b"\0"), "not as many as its shape"),
    "same name twice": (
        lambda f: raw(f, json.dumps({**ONE, "b": entry(0, 16, [4])}).replace('"b"', '"a"').encode(), FOUR),
        "a name twice",
    ),
    "same word twice": (
        lambda f: raw(f, b'{"a":{"dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[0,16]}}', FOUR),
        "a name twice",
    ),
    "a zero byte in a name": (lambda f: raw(f, {"a\0b": entry(0, 16, [4])}, FOUR), "control characters"),
    "half a character in a name": (
        lambda f: raw(f, b'{"\\ud800":' + json.dumps(ONE["a"]).encode() + b"}", FOUR),
        "cont",
    ),
    "a zip archive": (lambda f: raw(f, b"\0" * 40, claimed=int.from_bytes(b"PK\3\4\0\0\x08\x08", "little")), "a zip"),
    "a pickle": (lambda f: raw(f, b"\0" * 40, claimed=int.from_bytes(b"\x80\2}q\1(X\2", "little")), "a pickle"),
    "a GGUF file": (lambda f: raw(f, b"\0" * 40, claimed=int.from_bytes(b"GGUF\3\0\0\1", "little")), "a GGUF file"),
    "a pointer": (lambda f: pointer(f), "was not downloaded"),
    "a web page": (lambda f: raw(f, b">", claimed=int.from_bytes(b"<!doctyp", "little")), "a page from the web"),
    "does not exist": (lambda f: f / "model.safetensors", "is not a file"),
    "a folder": (lambda f: f, "is not a file"),
    "in a folder that is a file": (lambda f: raw(f, {}) / "model.safetensors", "is not a file"),
    "a name with a zero byte": (lambda f: f / "model\0.safetensors", "is not a file"),
    "a name longer than there are": (lambda f: f / ("x" * 5_000 + ".safetensors"), "cannot be opened|is not a file"),
}


def pointer(folder: Path) -> Path:
    path = folder / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_told_in_one_line_without_a_path(name, tmp_path):
    make, expected = REFUSED[name]
    path = make(tmp_path)
    start = time.perf_counter()
    with pytest.raises(UnreadableFile, match=expected) as raised:
        read_header(path)
    assert time.perf_counter() - start < 5
    assert_reason(raised.value, tmp_path)


def assert_reason(error: UnreadableFile, folder: Path) -> None:
    """One line of our own: no path, and nothing behind it that a log would print as well."""
    reason = str(error)
    assert reason and reason.isprintable() and len(reason) < 200
    assert str(folder.parent) not in reason
    assert error.__context__ is None and error.__cause__ is None


@pytest.mark.skipif(os.name == "nt", reason="such names cannot be made here")
def test_the_name_in_a_reason_is_cut_and_on_one_line(tmp_path):
    path = tmp_path / ("<b>a\nb" + "x" * 150)
    path.write_bytes(b"nothing")
    with pytest.raises(UnreadableFile) as raised:
        read_header(path)
    assert_reason(raised.value, tmp_path)
    assert str(raised.value).startswith("<b>a bxxx") and "x" * 60 not in str(raised.value)


def test_a_tensors_name_in_a_reason_is_cut(tmp_path):
    with pytest.raises(UnreadableFile) as raised:
        read_header(raw(tmp_path, {"x" * 100_000: entry(0, 16, [5])}, FOUR))
    assert_reason(raised.value, tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(UnreadableFile, match="not a file"):
        read_header(tmp_path / "model.safetensors")


def test_nesting_does_no_harm_where_the_limit_of_recursion_was_raised(tmp_path):
    """With a limit like this, Python's own parser of JSON runs out of stack and ends the process."""
    path = raw(tmp_path, nested(3_000_000, b"["))
    code = (
        "import sys; sys.setrecursionlimit(10**7); from pathlib import Path;"
        "from lib_guard.files import header\n"
        f"try: header._read(Path({str(path)!r}))\nexcept ValueError as error: print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and "nested deeper" in ran.stdout, ran.stderr


# Whatever it is, there is an answer or a reason; and no file is called sound that the library would refuse.


@pytest.mark.parametrize("at", range(0, 160, 2))
def test_a_bit_flipped_anywhere_in_the_header_ends_in_an_answer_or_a_reason(tmp_path, at):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3), "b": torch.ones(2, 2, dtype=torch.float16)}, path, metadata={"k": "v"})
    content = bytearray(path.read_bytes())
    for bit in range(8):
        content[at] ^= 1 << bit
        path.write_bytes(content)
        try:
            read_header(path)
        except UnreadableFile as error:
            assert_reason(error, tmp_path)
        else:
            assert the_library_reads(path)
        content[at] ^= 1 << bit


LEAF = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=6)
ANYTHING = st.recursive(
    LEAF, lambda of: st.lists(of, max_size=4) | st.dictionaries(st.text(max_size=6), of, max_size=4)
)
NEARLY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "F4", "I8"]) | LEAF,
        "shape": st.lists(st.integers(-1, 5), max_size=4) | ANYTHING,
        "data_offsets": st.lists(st.integers(-2, 40), min_size=2, max_size=2) | ANYTHING,
    }
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=ANYTHING | st.dictionaries(st.text(max_size=8), NEARLY | ANYTHING, max_size=4), body=st.binary(max_size=64)
)
def test_any_json_ends_in_an_answer_or_a_reason(tmp_path, header, body):
    path = raw(tmp_path, header, body)
    try:
        read_header(path)
    except UnreadableFile as error:
        assert_reason(error, tmp_path)
    else:
        assert the_library_reads(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_any_bytes_end_in_an_answer_or_a_reason(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    try:
        read_header(path)
    except UnreadableFile as error:
        assert_reason(error, tmp_path)
    else:
        assert the_library_reads(path)

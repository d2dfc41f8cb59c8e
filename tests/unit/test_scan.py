"""A model file is searched for numbers that are not finite; whatever it is, the answer is a tensor or a reason."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lib_guard.files import scan
from lib_guard.files.header import UnreadableFile
from lib_guard.files.scan import BadTensor, first_not_finite

INF, NAN = float("inf"), float("nan")
FLOAT8 = [
    dtype
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
    if (dtype := getattr(torch, name, None)) is not None
]


def saved(folder: Path, **tensors: torch.Tensor) -> Path:
    path = folder / "model.safetensors"
    save_file(tensors, path)
    return path


def raw(folder: Path, header: object, body: bytes = b"", claimed: int | None = None) -> Path:
    """A file with this header, whatever it is, and a length field of its own."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if claimed is None else claimed) + text + body)
    return path


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_first_tensor_by_name_is_told_with_its_counts(tmp_path, dtype):
    bad = torch.zeros(2, 5, dtype=dtype)
    bad[0, 1], bad[0, 2], bad[1, 3] = INF, -INF, NAN
    path = saved(tmp_path, c=bad.clone(), b=bad, a=torch.ones(3, dtype=dtype))
    assert first_not_finite(path) == BadTensor("b", (2, 5), str(dtype).removeprefix("torch."), 2, 1)


def test_a_finite_file_has_none(tmp_path):
    largest = torch.full((3,), torch.finfo(torch.float16).max, dtype=torch.float16)
    assert first_not_finite(saved(tmp_path, a=largest, b=-largest, empty=torch.empty(0, 4))) is None
    assert first_not_finite(raw(tmp_path, {})) is None


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool])
def test_integers_are_not_read(tmp_path, dtype, monkeypatch):
    path = saved(tmp_path, a=torch.ones(3, dtype=dtype))
    monkeypatch.setattr(scan, "_look_at", None)
    assert first_not_finite(path) is None


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_float8_is_looked_at_in_float32(tmp_path, dtype):
    assert first_not_finite(saved(tmp_path, a=torch.ones(3).to(dtype))) is None
    found = first_not_finite(saved(tmp_path, a=torch.tensor([1.0, NAN]).to(dtype)))
    assert found == BadTensor("a", (2,), str(dtype).removeprefix("torch."), 0, 1)


def test_the_float8_that_has_infinities_counts_them(tmp_path):
    found = first_not_finite(saved(tmp_path, a=torch.tensor([INF, -INF, NAN, 1]).to(torch.float8_e5m2)))
    assert found is not None and (found.infinite, found.nan) == (2, 1)


def test_a_tensor_is_counted_in_all_its_portions(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "_PORTION", 4)
    bad = torch.zeros(3, 7)
    bad[0, 0], bad[1, 0], bad[2, 6] = INF, NAN, NAN
    found = first_not_finite(saved(tmp_path, a=bad))
    assert found is not None and (found.shape, found.infinite, found.nan) == ((3, 7), 1, 2)


def test_a_single_number_counts_too(tmp_path):
    assert first_not_finite(saved(tmp_path, alpha=torch.tensor(NAN))) == BadTensor("alpha", (), "float32", 0, 1)


def test_nothing_after_the_found_tensor_is_read(tmp_path, monkeypatch):
    path = saved(tmp_path, a=torch.ones(2), b=torch.tensor([NAN]), c=torch.ones(2), d=torch.tensor([INF]))
    looked, look_at = [], scan._look_at
    monkeypatch.setattr(scan, "_look_at", lambda name, tensor: (looked.append(name), look_at(name, tensor))[1])
    assert first_not_finite(path).name == "b" and looked == ["a", "b"]


@pytest.mark.parametrize(
    ("infinite", "nan", "said"),
    [(12, 3, "12 inf and 3 NaN"), (1, 0, "1 inf"), (0, 7, "7 NaN")],
)
def test_a_bad_tensor_is_described_in_one_clause(infinite, nan, said):
    bad = BadTensor("lora_unet_mid_block.lora_down.weight", (4, 320), "float16", infinite, nan)
    assert bad.describe() == f"lora_unet_mid_block.lora_down.weight [4, 320] holds {said}"


def test_a_hostile_name_is_cut_and_put_on_one_line(tmp_path):
    name = "a\n\x1b[31m\u202e" + "x" * 10_000
    found = first_not_finite(raw(tmp_path, {name: entry(0, 4, [1] * 200)}, struct.pack("<f", NAN)))
    assert found is not None and found.name == name and len(found.shape) == 200
    assert len(found.describe()) < 220 and found.describe().isprintable() and found.describe().endswith("1 NaN")


FOUR = b"\0" * 16
HOSTILE = {
    "empty": lambda folder: raw(folder, b"", claimed=0),
    "shorter than a length": lambda folder: Path(shorten(raw(folder, {}), 3)),
    "truncated in the numbers": lambda folder: Path(shorten(raw(folder, {"a": entry(0, 16, [4])}, FOUR), 6, end=True)),
    "truncated in the header": lambda folder: Path(shorten(raw(folder, {"a": entry(0, 16, [4])}), 20)),
    "bytes left over": lambda folder: raw(folder, {"a": entry(0, 16, [4])}, FOUR + FOUR),
    "header longer than the file": lambda folder: raw(folder, {"a": entry(0, 16, [4])}, FOUR, claimed=10_000),
    "header of 200 MB claimed": lambda folder: raw(folder, {}, claimed=200_000_000),
    "header of 2^64 - 1 claimed": lambda folder: raw(folder, {}, claimed=2**64 - 1),
    "header is no JSON": lambda folder: raw(folder, b"hello, world"),
    "header is no UTF-8": lambda folder: raw(folder, b'{"\xff\xfe": 1}'),
    "header is a list": lambda folder: raw(folder, [1, 2, 3]),
    "header nested deeply": lambda folder: raw(folder, b'{"__metadata__":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001),
    "overlapping": lambda folder: raw(folder, {"a": entry(0, 16, [4]), "b": entry(8, 24, [4])}, FOUR + FOUR[:8]),
    "same numbers twice": lambda folder: raw(folder, {"a": entry(0, 16, [4]), "b": entry(0, 16, [4])}, FOUR),
    "same name twice": lambda folder: raw(
        folder, json.dumps({"a": entry(0, 8, [2]), "b": entry(8, 16, [2])}).replace('"b"', '"a"').encode(), FOUR
    ),
    "a hole": lambda folder: raw(folder, {"a": entry(4, 16, [3])}, FOUR),
    "backwards": lambda folder: raw(folder, {"a": entry(16, 0, [4])}, FOUR),
    "another size than the shape": lambda folder: raw(folder, {"a": entry(0, 16, [5])}, FOUR),
    "a negative size": lambda folder: raw(folder, {"a": entry(0, 16, [-4])}, FOUR),
    "more numbers than can be counted": lambda folder: raw(folder, {"a": entry(0, 16, [2**33, 2**33])}, FOUR),
    "a size beyond 64 bits": lambda folder: raw(folder, {"a": entry(0, 0, [0, 2**63])}),
    "an unknown dtype": lambda folder: raw(folder, {"a": entry(0, 16, [4], "F128")}, FOUR),
    "does not exist": lambda folder: folder / "model.safetensors",
    "a folder": lambda folder: folder,
    "in a folder that is a file": lambda folder: raw(folder, {}) / "model.safetensors",
    "a name with a zero byte": lambda folder: folder / "model\0.safetensors",
    "a name longer than there are": lambda folder: folder / ("x" * 5_000 + ".safetensors"),
}


def shorten(path: Path, size: int, end: bool = False) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[:-size] if end else content[:size])
    return path


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_read_has_one_class_of_error_and_no_path(name, tmp_path):
    path = HOSTILE[name](tmp_path)
    with pytest.raises(UnreadableFile) as raised:
        first_not_finite(path)
    assert_reason(raised.value, tmp_path)


def assert_reason(error: UnreadableFile, folder: Path) -> None:
    """One line of our own: no path, nothing of the library's, and nothing behind it that a log would print as well."""
    reason = str(error)
    assert reason and reason.isprintable() and len(reason) < 140
    assert str(folder.parent) not in reason and "deserializ" not in reason.lower() and "os error" not in reason
    assert error.__suppress_context__ or error.__context__ is None


@pytest.mark.parametrize("ending", ["pt", "ckpt", "bin", "safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_never_opened_whatever_it_is_called(tmp_path, ending, zipped):
    ran = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return Path.touch, (ran,)

    path = tmp_path / f"model.{ending}"
    torch.save({"payload": Payload(), "a": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnreadableFile) as raised:
        first_not_finite(path)
    assert_reason(raised.value, tmp_path)
    assert not ran.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(UnreadableFile, match="not a file"):
        first_not_finite(tmp_path / "model.safetensors")


@pytest.mark.skipif(os.name == "nt", reason="such names cannot be made here")
def test_the_name_in_a_reason_is_cut_and_on_one_line(tmp_path):
    path = tmp_path / ("a\nb" + "x" * 150)
    path.write_bytes(b"nothing")
    with pytest.raises(UnreadableFile) as raised:
        first_not_finite(path)
    assert_reason(raised.value, tmp_path)
    assert str(raised.value).startswith("a bxxx") and "x" * 60 not in str(raised.value)


@pytest.mark.parametrize("at", range(0, 120, 3))
def test_a_bit_flipped_anywhere_in_the_header_ends_in_an_answer_or_a_reason(tmp_path, at):
    path = saved(tmp_path, a=torch.ones(3), b=torch.tensor([1.0, NAN]))
    content = bytearray(path.read_bytes())
    for bit in range(8):
        content[at] ^= 1 << bit
        path.write_bytes(content)
        try:
            found = first_not_finite(path)
        except UnreadableFile as error:
            assert_reason(error, tmp_path)
        else:
            assert found is None or isinstance(found.describe(), str)
        content[at] ^= 1 << bit


def test_the_file_can_be_deleted_afterwards(tmp_path):
    path = saved(tmp_path, a=torch.tensor([NAN]))
    first_not_finite(path)
    path.unlink()
    assert not path.exists()

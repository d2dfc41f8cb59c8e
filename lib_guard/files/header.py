"""What a safetensors file holds, read from its header alone: no numbers, no torch, no parser but Python's own.

The file begins with eight bytes, a length N, least byte first; then come N bytes of JSON, then the tensors
(huggingface/safetensors README.md:76-87). Whatever the library itself refuses is refused here too, and so is what it
lets pass though no two parsers agree on it: a name that is there twice.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ..wording import on_one_line

#: The library reads no header above this either (huggingface/safetensors safetensors/src/tensor.rs:10).
_MOST = 100_000_000

#: Bits of one number of each dtype that the format knows.
_BITS = {
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}

#: How files of other kinds begin.
_OTHERS = {
    b"PK\x03\x04": "a zip archive, as .pt and .ckpt files are",
    b"\x80": "a pickle, as .pt, .ckpt and .bin files are",
    b"GGUF": "a GGUF file",
    b"version https://git-lfs": "a pointer to a file that was not downloaded",
    b"<": "a page from the web, perhaps an error page that was saved as the file",
}

#: A string of JSON; one without an end goes to the end of the text, so that no character is looked at twice.
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
_LIST_OF_MORE_THAN_NUMBERS = re.compile(rb"\[[^\[\]{}]*[\[{]")
_FLAT_OBJECT = re.compile(rb"\{[^{}]*\}")

#: In no tensor's name: control characters, and halves of characters that no output can encode.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

#: No size or offset has more digits, and Python takes its time to read a number with millions of them.
_DIGITS = 19


class _Flaw(ValueError):  # noqa: N818 - as the exception that it becomes, it says what is the matter
    """Why a file cannot be read: the end of a sentence that begins with its name."""


class UnreadableFile(ValueError):  # noqa: N818 - it says what the file is
    """The file is none, or no safetensors file, or a damaged one. Says so in one line that holds its name, no path."""


@dataclass(frozen=True)
class TensorEntry:
    """What a header says of one tensor.

    dtype: the format's own name, `BF16`. start, end: where its bytes lie, counted from the first byte of the tensors.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """A whole header: the tensors by name, in the file's order, and what the writer noted down about them."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file; its tensors' bytes are not touched.

    A header that is returned is sound: every range of bytes lies in the file, belongs to one tensor, and is as long as
    dtype and shape ask for; no bytes are left over.

    Raises `UnreadableFile`, and nothing else, with one line that holds the file's name, no path.
    """
    try:
        return _read(path)
    except _Flaw as flaw:
        reason = str(flaw)
    except OSError:
        reason = "cannot be opened"
    raise _unreadable(path, reason)


def _unreadable(path: Path, reason: str) -> ValueError:
    # Here and not above: the file that holds the class needs torch, and reading a header does not.

    return UnreadableFile(f"{on_one_line(path.name, 60) or 'the file'} {reason}")


def _read(path: Path) -> Header:
    if not path.is_file():  # a pipe would be waited for, and a folder is an error of another kind on each system
        raise _Flaw("is not a file")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(32)
        if size < 8:
            raise _Flaw("is no safetensors file: it is shorter than the length that each begins with")
        length = int.from_bytes(start[:8], "little")
        if length > min(_MOST, size - 8):
            raise _Flaw(_too_long(start, length))
        file.seek(8)
        text = file.read(length)
    if len(text) != length:
        raise _Flaw("was cut while it was read")
    return _parsed(text, size - 8 - length)


def _too_long(start: bytes, length: int) -> str:
    for magic, kind in _OTHERS.items():
        if start.startswith(magic):
            return f"is no safetensors file but {kind}"
    if length > _MOST:
        return "is no safetensors file, or a damaged one: its header would be larger than 100 MB"
    return "is cut short, or no safetensors file: it ends within its header"


def _parsed(text: bytes, room: int) -> Header:
    """text: the JSON. room: how many bytes of tensors follow it."""
    _check_nesting(text)
    try:
        content = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_once_each,
            parse_int=_whole,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
    except _Flaw:
        raise
    except UnicodeDecodeError:
        raise _Flaw("is damaged: its header is not UTF-8") from None
    except ValueError:
        raise _Flaw("is no safetensors file, or a damaged one: its header is not JSON") from None
    if not isinstance(content, dict):
        raise _Flaw("is damaged: its header is not an object of tensors")
    metadata = _metadata(content.pop("__metadata__", None))
    tensors = {name: _entry(name, value) for name, value in content.items()}
    _check_places(tensors, room)
    return Header(tensors, metadata)


def _check_nesting(text: bytes) -> None:
    """Refuse what is nested deeper than a header is, before a parser follows it down: with the limit of recursion
    raised, as some extensions do, Python's own would end the process."""
    bare = _STRING.sub(b"", text)
    if _LIST_OF_MORE_THAN_NUMBERS.search(bare) or _FLAT_OBJECT.sub(b"", bare).count(b"{") > 1:
        raise _Flaw("is damaged: its header is nested deeper than any header is")


def _once_each(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Flaw("is damaged: its header holds a name twice")
    return found


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise _Flaw("is damaged: its header holds a number that is too large")
    return int(digits)


def _no_number(_text: str) -> NoReturn:
    raise _Flaw("is damaged: its header holds a number that is not a whole one")


def _metadata(value: object) -> dict[str, str]:
    if value is None:
        return {}
    found = {key: text for key, text in value.items() if isinstance(text, str)} if isinstance(value, dict) else {}
    if not isinstance(value, dict) or len(found) != len(value):
        raise _Flaw("is damaged: the metadata in its header is not text by name")
    return found


def _entry(name: str, value: object) -> TensorEntry:
    if _CONTROL.search(name):
        raise _Flaw("is damaged: a tensor's name in its header holds control characters")
    said = on_one_line(name, 60)
    if not isinstance(value, dict):
        raise _Flaw(f"is damaged: its header does not describe the tensor {said}")
    dtype, shape, offsets = value.get("dtype"), _sizes(value.get("shape")), _sizes(value.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        raise _Flaw(f"is damaged: its header does not describe the tensor {said}")
    if dtype not in _BITS:
        raise _Flaw(f"holds the tensor {said} in the dtype {on_one_line(dtype, 20)}, which is none of the format's")
    start, end = offsets
    if not _fits(shape, _BITS[dtype], end - start):
        raise _Flaw(f"is damaged: the bytes of the tensor {said} are not as many as its shape asks for")
    return TensorEntry(dtype, shape, start, end)


def _sizes(value: object) -> tuple[int, ...] | None:
    """A list of whole numbers from 0 on; None for anything else."""
    if not isinstance(value, list) or not all(type(size) is int and size >= 0 for size in value):
        return None
    return tuple(value)


def _fits(shape: tuple[int, ...], bits: int, count: int) -> bool:
    """Whether so many bytes hold so many numbers. Stops as soon as they cannot: a shape can be as long as a header."""
    wanted = count * 8
    found = 0 if 0 in shape else bits
    for size in shape:
        found *= size
        if found > wanted:
            return False
    return found == wanted


def _check_places(tensors: Mapping[str, TensorEntry], room: int) -> None:
    end = 0
    for entry in sorted(tensors.values(), key=lambda entry: (entry.start, entry.end)):
        if entry.start != end:
            raise _Flaw(f"is damaged: its tensors {'overlap' if entry.start < end else 'leave a hole between them'}")
        end = entry.end
    if end > room:
        raise _Flaw(f"is cut short: of {end} bytes of its tensors {room} are there")
    if end < room:
        raise _Flaw(f"is damaged: {room - end} bytes at its end belong to no tensor")

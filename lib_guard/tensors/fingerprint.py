"""What a component's weights are, in two 64-bit numbers a tensor: taken on their own device, compared later.

The bytes of a tensor, in the order of its indices, are read as 64-bit words and laid out in rows of 639. Every row and
every column is summed (integers that wrap at 2^64, so in any order and on any device alike), and each of these sums
goes, together with its place, through a mixer that is a bijection; `Fingerprint.sums` are the mixed rows and the mixed
columns, added up. In a tensor of at most 32 KiB each word is a row by itself, and there are no columns. The same goes
for the words behind the last whole row.

What that sees, where dtype and shape stay the same:

* with certainty: every change within one word (8 bytes at a multiple of 8), so every change of a single number that is
  no longer than that; more generally every change after which exactly one row, or exactly one column, has another sum.
* with a chance of about 2^-64 to miss it: every other change of the sum, modulo 2^64, of a row or a column. Changes
  of two or three words, wherever they stand, always bring one, so two words that trade places do, and so do two numbers
  that do. Short of a coincidence in every row and every column at once, so do a permutation, a shift, a negation, and
  something added to a whole layer.
* never, in a tensor of more than 32 KiB: differences that add up to zero, modulo 2^64, in each row and in each column.
  That takes at least four words at the corners of a rectangle of that layout, such as words a, b over b, a that become
  b, a over a, b; or words of which only the uppermost bit changes, an even number of times in each row and column.

It is no protection against someone who wants to deceive it. Numbers that are equal and have other bytes (0.0 and -0.0)
differ; numbers that are not numbers (NaN) are bytes like others. The words are those of the machine, so fingerprints
of machines of unequal byte order differ.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .words import Words

#: Words in a row. Odd, because the sum of an even number of words does not see it when the uppermost bit of all of them
#: changes, which is the sign of a float64 and of every second float32. Not close to a power of two, so that what lies
#: one below the other finds room in a CPU's cache.
ROW = 639
#: A tensor of at most so many words is mixed word by word.
SMALL = 4096
#: Rows that are read at once on a CPU, about 2 MiB: they are read for the rows, then for the columns, and the second
#: time they are to come from the cache. A multiple of BLOCKS.
ROWS_AT_ONCE = 384
#: Parts that the columns of these rows are summed in first; the threads divide them as they divided the rows.
BLOCKS = 8
#: Words that wait until they are mixed together: for small tensors calls cost more than bytes. With what the next
#: tensor adds it is mostly below the 32768 up to which torch does not divide a call among threads.
WAITING = 3 << 13

#: Makes unlike numbers of places; 2^64 over the golden ratio, as a signed integer.
_PLACE = 0x9E3779B97F4A7C15 - (1 << 64)
#: MurmurHash3's multipliers, as signed integers.
_FIRST, _SECOND = 0xFF51AFD7ED558CCD - (1 << 64), 0xC4CEB9FE1A85EC53 - (1 << 64)


@dataclass(frozen=True)
class Fingerprint:
    """The fingerprint of one tensor; two are equal when they say the same of all that could be read.

    dtype, shape: the tensor's. sums: of its rows and of its columns, each from -2^63 to 2^63 - 1; None where there are
    no bytes to read. parts: of a tensor that is made of others (quantized, sparse) the fingerprints of these, and then
    sums is None as well.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    sums: tuple[int, int] | None = None
    parts: tuple[Fingerprint, ...] = ()

    @property
    def readable(self) -> bool:
        """Whether its bytes, or those of all its parts, have been read; if not, only dtype and shape are known."""
        return self.sums is not None or (bool(self.parts) and all(part.readable for part in self.parts))

    def differs(self, other: Fingerprint) -> bool:
        """Whether something that both know is not the same; what only one of them could read is not compared."""
        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return True
        if self.sums is not None and other.sums is not None:
            return self.sums != other.sums
        if self.parts and other.parts:
            return len(self.parts) != len(other.parts) or any(map(Fingerprint.differs, self.parts, other.parts))
        return self.readable and other.readable


def fingerprint(tensor: torch.Tensor) -> Fingerprint:
    """The fingerprint of `tensor`, of any shape, strides, dtype and device. Waits for its device.

    It is neither written to nor copied whole, nor is any number in it cast; a tensor that is not contiguous, or does
    not begin at a multiple of 8 bytes, is copied piece by piece, 2 MiB at a time on a CPU and 32 MiB elsewhere. Raises
    what the device raises.
    """
    return _fingerprints([tensor])[0]


def fingerprints(component: nn.Module) -> dict[str, Fingerprint]:
    """The fingerprints of all parameters and buffers of `component`, by name; what has several names is read once.

    The names are those of its `state_dict`, with the buffers that this leaves out; a module that it holds in several
    places is named by the first. Each device is waited for once, at the end; one that has no sums of 64-bit integers is
    waited for at every 2 MiB. Raises what a device raises.
    """
    return fingerprints_of(
        {
            f"{path}.{name}" if path else name: tensor
            for path, module in component.named_modules()
            for name, tensor in chain(module._parameters.items(), module._buffers.items())
            if tensor is not None
        }
    )


def fingerprints_of(named: Mapping[str, torch.Tensor]) -> dict[str, Fingerprint]:
    """The fingerprints of tensors, by name; what has several names is read once. As `fingerprints` otherwise."""
    different = {id(tensor): tensor for tensor in named.values()}
    taken = dict(zip(different, _fingerprints(different.values())))
    return {name: taken[id(tensor)] for name, tensor in named.items()}


def changed(before: Mapping[str, Fingerprint], after: Mapping[str, Fingerprint]) -> list[str]:
    """The names whose tensors differ, came, or went, in the order of `before` and then of `after`.

    A tensor that could be read only one of the two times (because it was offloaded to no device at all) is told by its
    dtype and shape alone.
    """
    return [
        name
        for name in dict.fromkeys(chain(before, after))
        if name not in before or name not in after or before[name].differs(after[name])
    ]


def _fingerprints(tensors: Iterable[torch.Tensor]) -> list[Fingerprint]:
    """The fingerprints of `tensors`, each device waited for once."""
    # Inference mode reads tensors that were made in it and those that were not, and records neither. What overrides
    # torch's functions (subclasses, modes, among them LibGuard's) is to see nothing of this, and change nothing in it.
    with torch.inference_mode(), torch._C.DisableTorchFunction():
        sums: dict[torch.device, _Sums] = {}
        read = [_read(tensor, sums) for tensor in tensors]
        results = {device: of_device.results() for device, of_device in sums.items()}
    return [_finished(one, results) for one in read]


class _Read(NamedTuple):
    """A tensor that has been read; its numbers are still on their device."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    #: The device and which results there are of its rows and of its columns; None where it has no bytes of its own.
    sums: tuple[torch.device, int, int] | None = None
    parts: tuple[_Read, ...] = ()


def _finished(read: _Read, results: Mapping[torch.device, list[int]]) -> Fingerprint:
    if read.sums is None:
        return Fingerprint(read.dtype, read.shape, None, tuple(_finished(part, results) for part in read.parts))
    device, rows, columns = read.sums
    return Fingerprint(read.dtype, read.shape, (results[device][rows], results[device][columns]))


def _read(tensor: torch.Tensor, sums: dict[torch.device, _Sums]) -> _Read:
    """Have the sums of `tensor`, or of what it is made of, taken on its device."""
    if is_lazy(tensor):  # which has no shape yet, and raises when it is asked for it
        return _Read(tensor.dtype, ())
    dtype, shape, parts = tensor.dtype, tuple(tensor.shape), _parts(tensor)
    if parts:
        return _Read(dtype, shape, None, tuple(_read(part, sums) for part in parts))
    if parts is None or not _has_bytes(tensor):
        return _Read(dtype, shape)
    device = tensor.device
    if device not in sums:
        sums[device] = _Sums(device) if _sums_words(device) else _LaneSums(device)
    return _Read(dtype, shape, (device, *sums[device].add(tensor)))


def _parts(tensor: torch.Tensor) -> list[torch.Tensor] | None:
    """The tensors that hold the bytes of one that has none of its own; [] where it has, None where they are unknown."""
    layout = tensor.layout
    if layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return _parts_of_wrapper(tensor)
    return [] if layout is torch.strided and not tensor.is_quantized and not tensor.is_nested else None


def _parts_of_wrapper(tensor: torch.Tensor) -> list[torch.Tensor] | None:
    """The inner tensors of a subclass that computes by itself: those it names, else its `_data`."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return [getattr(tensor, name) for name in names]
    data = getattr(tensor, "_data", None)
    return [data] if isinstance(data, torch.Tensor) and data is not tensor else None


def _has_bytes(tensor: torch.Tensor) -> bool:
    """Whether there is memory behind `tensor`: not on the meta device, and not where a host has let go of it."""
    return not tensor.is_meta and (tensor.numel() == 0 or tensor.data_ptr() != 0)


class _Sums:
    """The sums of many tensors of one device. They stay on it until `results`."""

    def __init__(self, device: torch.device) -> None:
        #: Where sums wait and are mixed.
        self._device = device
        #: Only a CPU's cache is worth dividing the work for; other devices take few and large calls.
        self._rows_at_once = ROWS_AT_ONCE if device.type == "cpu" else 16 * ROWS_AT_ONCE
        self._pieces: list[torch.Tensor] = []
        self._lengths: list[int] = []
        self._waiting = 0
        #: The first is that of everything without words.
        self._results = [torch.zeros(1, dtype=torch.int64, device=device)]
        self._known = 1

    def add(self, tensor: torch.Tensor) -> tuple[int, int]:
        """Take the sums of a strided tensor that has bytes; which of the results are its rows and its columns."""
        words = Words(tensor)
        if words.count <= SMALL:
            segments = self._wait(self._own_rows(words, 0)), 0
        else:
            rows, columns = self._rows_and_columns(words)
            segments = self._wait(rows), self._wait([columns])
        if self._waiting >= WAITING:
            self._mix()
        return segments

    def results(self) -> list[int]:
        """A number for each segment, in order. Waits for the device."""
        self._mix()
        results: list[int] = torch.cat(self._results).tolist()
        return results

    def _wait(self, pieces: list[torch.Tensor]) -> int:
        """Let `pieces`, int64 [n] each, wait to be mixed as one segment; returns which of the results will be its."""
        length = sum(piece.numel() for piece in pieces)
        if not length:
            return 0
        self._pieces += pieces
        self._lengths.append(length)
        self._waiting += length
        return self._known + len(self._lengths) - 1

    def _mix(self) -> None:
        """Mix what is waiting, and keep its sums."""
        if self._lengths:
            self._results.append(_mixed(torch.cat(self._pieces), self._lengths))
            self._known += len(self._lengths)
            self._pieces, self._lengths, self._waiting = [], [], 0

    def _rows_and_columns(self, words: Words) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The row sums, with the words behind the last row, and the column sums."""
        of_rows, of_columns, rows = [], [], words.count // ROW
        for first in range(0, rows, self._rows_at_once):
            last = min(first + self._rows_at_once, rows)
            row_sums, column_sums = self._table(words.some(first * ROW, last * ROW).view(-1, ROW))
            of_rows.append(row_sums)
            of_columns.append(column_sums)
        columns = of_columns[0] if len(of_columns) == 1 else torch.stack(of_columns).sum(0)
        return of_rows + self._own_rows(words, rows * ROW), columns

    def _table(self, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The row sums, int64 [n], and the column sums, int64 [ROW], of int64 [n, ROW]."""
        return table.sum(1), _column_sums(table)

    def _own_rows(self, words: Words, first: int) -> list[torch.Tensor]:
        """The words from the one with number `first` on, and what is behind the last whole word filled with zeros."""
        return [words.some(first, words.count), *words.rest()]


class _LaneSums(_Sums):
    """The same for a device without sums of 64-bit integers: 16 bits of each word at a time, in sums of 32 bits.

    Each table's sums are brought to the CPU when they are taken, and put together there.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(torch.device("cpu"))

    def _table(self, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # A row has 639 numbers and a column 384, of at most 65535 each, which 32 bits hold.
        halves = table.view(torch.int32).view(-1, ROW, 2)
        lanes = torch.stack((halves & 0xFFFF, (halves >> 16) & 0xFFFF), dim=-1)  # [n, ROW, half, lane]
        return tuple(  # type: ignore[return-value]
            _put_together(lanes.sum(dim, dtype=torch.int32).cpu()) for dim in (1, 0)
        )

    def _own_rows(self, words: Words, first: int) -> list[torch.Tensor]:
        return [piece.view(torch.int32).cpu().view(torch.int64) for piece in super()._own_rows(words, first)]


def _column_sums(table: torch.Tensor) -> torch.Tensor:
    """int64 [ROW] of int64 [n, ROW]."""
    rows = table.shape[0]
    if rows <= ROWS_AT_ONCE // BLOCKS:
        return table.sum(0)
    blocks = max(BLOCKS, rows // (ROWS_AT_ONCE // BLOCKS))
    height = rows // blocks
    if rows % blocks == 0:
        return table.view(blocks, height, ROW).sum(1).sum(0)
    parts = torch.empty(blocks + rows % blocks, ROW, dtype=torch.int64, device=table.device)
    torch.sum(table[: blocks * height].view(blocks, height, ROW), 1, out=parts[:blocks])
    parts[blocks:] = table[blocks * height :]
    return parts.sum(0)


def _put_together(lanes: torch.Tensor) -> torch.Tensor:
    """int64 [n] of the sums of its lanes, int32 [n, 2, 2], lowest first, modulo 2^64."""
    places = torch.tensor([[0, 16], [32, 48]])
    return (lanes.long() << places).sum((1, 2))


def _mixed(words: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """int64 [segments]: each segment's words, mixed with their places in it, and added up.

    words: int64 [n], which is changed; the segments lie in it one after the other, none of them empty.
    """
    ends = torch.tensor(list(accumulate(lengths)))
    starts = ends - torch.tensor(lengths)
    # The places are 1, 2, 3 ... times a number, from each start anew: sums of steps, which at a start lead back.
    back = (1 - torch.tensor([0, *lengths[:-1]])) * _PLACE
    # Not to wait for the device three times; what CUDA copies from ordinary memory it has read when the call returns.
    last, starts, back = (few.to(words.device, non_blocking=words.is_cuda) for few in (ends - 1, starts, back))
    steps = torch.full_like(words, _PLACE)
    steps[starts] = back
    words += steps.cumsum(0)
    _mix_each(words)
    return words.cumsum(0)[last].diff(prepend=words.new_zeros(1))


def _mix_each(words: torch.Tensor) -> None:
    """MurmurHash3's last step on each of the words, int64 [n], in place, with shifts by half a word: a bijection."""
    halves = words.view(torch.int32).view(-1, 2)
    for factor in (_FIRST, _SECOND):
        halves[:, 0].bitwise_xor_(halves[:, 1])
        words.mul_(factor)
    halves[:, 0].bitwise_xor_(halves[:, 1])


@functools.cache
def _sums_words(device: torch.device) -> bool:
    """Whether `device` adds up 64-bit integers as a CPU does; some cannot, and some round them."""
    if device.type in ("cpu", "cuda"):
        return True
    sample = torch.arange(2 * SMALL).mul_(_PLACE)
    expected = _Sums(torch.device("cpu"))
    expected.add(sample)
    try:
        there = _Sums(device)
        there.add(sample.to(device))
        return there.results() == expected.results()
    except (RuntimeError, TypeError):  # NotImplementedError is a RuntimeError
        return False

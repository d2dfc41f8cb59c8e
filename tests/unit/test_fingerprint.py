"""Fingerprints: equal for equal bytes wherever and however they lie, unequal after every change that is named."""

from __future__ import annotations

import itertools
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.overrides import TorchFunctionMode

from lib_guard.tensors import fingerprint as module
from lib_guard.tensors.fingerprint import Fingerprint, changed, fingerprint, fingerprints

ROOT = Path(__file__).resolve().parents[2]
A_ROW = 8 * module.ROW
#: Bytes: none, few, with a tail, the largest that is mixed word by word, one row and a part, many rows, several tables.
LENGTHS = (
    0, 1, 7, 8, 9, 31, 4096, 8 * module.SMALL, 8 * module.SMALL + 8, 9 * A_ROW + 5, 65 * A_ROW + 13, 100 * A_ROW,
    module.ROWS_AT_ONCE * A_ROW, (module.ROWS_AT_ONCE + 3) * A_ROW + 17, (2 * module.ROWS_AT_ONCE + 70) * A_ROW + 16,
)  # fmt: skip
LARGE = LENGTHS[9:]
DTYPES = [
    dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype) and not str(dtype).startswith(("torch.q", "torch.bits", "torch.complex32"))
]
COMPUTED = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128]
CHECKED = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Thousands of small calls, which threads only hold up where others use the processors as well."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def of_bytes(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def random_bytes(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (length,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def random(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Random bytes, which are numbers of any kind."""
    count = torch.Size(shape).numel()
    size = torch.empty(0, dtype=dtype).element_size()
    if dtype is torch.bool:
        return (random_bytes(count, seed) & 1).bool().view(shape)
    return random_bytes(count * size, seed).view(dtype).view(shape)


# What the numbers are.

WRAP = 1 << 64


def signed(number: int) -> int:
    return (number + WRAP // 2) % WRAP - WRAP // 2


def reference(data: bytes) -> tuple[int, int]:
    """What the docstring says, in integers of any size."""

    def mixed(entries: list[int]) -> int:
        total = 0
        for place, entry in enumerate(entries, 1):
            word = (entry + place * 0x9E3779B97F4A7C15) % WRAP
            for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
                word = (word ^ word >> 32) * factor % WRAP
            total += word ^ word >> 32
        return signed(total)

    words = list(struct.unpack(f"<{-(-len(data) // 8)}Q", data + bytes(-len(data) % 8)))
    whole = len(data) // 8
    if whole <= module.SMALL:
        return mixed(words), 0
    table = [words[at : at + module.ROW] for at in range(0, whole - module.ROW + 1, module.ROW)]
    rows = [sum(row) % WRAP for row in table] + words[len(table) * module.ROW :]
    return mixed(rows), mixed([sum(column) % WRAP for column in zip(*table)])


@pytest.mark.parametrize("length", LENGTHS)
def test_the_numbers_are_those_that_the_docstring_tells(length: int) -> None:
    tensor = random_bytes(length)
    assert fingerprint(tensor) == Fingerprint(torch.uint8, (length,), reference(bytes(tensor.numpy())))


def test_another_process_with_more_threads_comes_to_the_same() -> None:
    code = (
        "import torch; from lib_guard.tensors.fingerprint import fingerprint; torch.set_num_threads(4);"
        "print(fingerprint(torch.arange(1_000_000)).sums)"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told.strip() == str(fingerprint(torch.arange(1_000_000)).sums)


# Equal bytes, wherever and however they lie.


def laid_out(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same numbers in other memory."""
    rows, columns = tensor.shape
    wide = torch.empty(rows, columns + 3, dtype=tensor.dtype)
    wide[:, 1:-2] = tensor
    odd = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    odd[1:] = tensor.reshape(-1)
    memory = bytearray(bytes(1) + bytes(tensor.reshape(-1).view(torch.uint8).numpy()))
    return {
        "transposed": tensor.t().contiguous().t(),
        "within another": wide[:, 1:-2],
        "at an odd offset": odd[1:].view(rows, columns),
        "at an odd address": torch.frombuffer(memory, dtype=tensor.dtype, offset=1).view(rows, columns),
        "shared": tensor.clone().share_memory_(),
        "a parameter": nn.Parameter(tensor, requires_grad=False),
    }


@pytest.mark.parametrize("shape", [(3, 5), (64, 65), (523, 1029)])
@pytest.mark.parametrize("dtype", [*COMPUTED, torch.uint8, torch.int8, torch.int64, torch.float8_e4m3fn], ids=str)
def test_the_layout_in_memory_makes_no_difference(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    tensor = random(shape, dtype)
    expected = fingerprint(tensor)
    for name, other in laid_out(tensor).items():
        assert fingerprint(other) == expected, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.complex128], ids=str)
def test_images_in_another_memory_format(dtype: torch.dtype) -> None:
    tensor = random((130, 70, 9, 9), dtype)
    assert fingerprint(tensor.contiguous(memory_format=torch.channels_last)) == fingerprint(tensor)
    assert fingerprint(tensor.permute(3, 0, 2, 1)) == fingerprint(tensor.permute(3, 0, 2, 1).contiguous())
    assert fingerprint(tensor[:, :1].expand(-1, 70, -1, -1)) == fingerprint(tensor[:, :1].repeat(1, 70, 1, 1))


def test_lazily_conjugated_and_negated_numbers_count_as_what_they_are() -> None:
    tensor = torch.randn(90, 70, dtype=torch.complex64)
    assert fingerprint(tensor.conj()) == fingerprint(tensor.conj().resolve_conj()) != fingerprint(tensor)
    assert fingerprint(tensor.conj().imag) == fingerprint(-tensor.imag)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_read(dtype: torch.dtype) -> None:
    for shape in ((), (0,), (1,), (13,), (3, 0, 2), (70_001,)):
        tensor = random(shape, dtype)
        taken = fingerprint(tensor)
        assert taken.readable and taken == fingerprint(tensor)
        assert taken.dtype is dtype and taken.shape == shape
    tensor = random((70, 700), dtype)
    assert fingerprint(tensor.t()).readable


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, torch.complex128], ids=str)
def test_a_device_without_64_bit_sums_comes_to_the_same(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, length: int
) -> None:
    tensor = random_bytes(length // 16 * 16 if dtype.itemsize > 1 else length).view(dtype)
    everywhere = [tensor, *([tensor.view(-1, 8).t()] if tensor.numel() % 8 == 0 and tensor.numel() else [])]
    expected = [fingerprint(one) for one in everywhere]
    monkeypatch.setattr(module, "_sums_words", lambda device: False)
    assert [fingerprint(one) for one in everywhere] == expected


def test_a_device_is_asked_whether_it_can_add() -> None:
    assert module._sums_words(torch.device("cpu"))
    assert not module._sums_words(torch.device("meta"))  # a device whose calls raise


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("length", LENGTHS)
def test_a_gpu_comes_to_the_same(length: int) -> None:
    tensor = random_bytes(length)
    assert fingerprint(tensor.cuda()) == fingerprint(tensor) == fingerprint(tensor.pin_memory())
    strided = random_bytes(length // 12 * 12).view(-1, 12)
    assert fingerprint(strided.cuda()[:, ::3]) == fingerprint(strided[:, ::3])


@pytest.mark.parametrize("made_in", [True, False])
@pytest.mark.parametrize("read_in", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_inference_mode_makes_no_difference(length: int, made_in: bool, read_in: bool) -> None:
    expected = fingerprint(random_bytes(length))
    with torch.inference_mode(made_in):
        tensor = random_bytes(length)
        views = {"itself": tensor, "view": torch.stack((tensor, tensor), 1)[:, 1]}
    with torch.inference_mode(read_in):
        assert {name: fingerprint(view) for name, view in views.items()} == dict.fromkeys(views, expected)


# Nothing happens to what is read.


@pytest.mark.parametrize("contiguous", [True, False])
def test_nothing_happens_to_the_tensor(contiguous: bool) -> None:
    layer = nn.Linear(300, 400)
    layer.weight = nn.Parameter(layer.weight.detach() if contiguous else layer.weight.detach().t().contiguous().t())
    layer(torch.ones(1, 300)).sum().backward()
    weight, gradient = layer.weight, layer.weight.grad
    before = weight.data_ptr(), weight._version, weight.requires_grad, weight.stride(), weight.detach().clone()
    fingerprints(layer)
    after = weight.data_ptr(), weight._version, weight.requires_grad, weight.stride()
    assert before[:4] == after and torch.equal(before[4], weight) and weight.grad is gradient
    assert weight.grad_fn is None and not weight.is_inference()
    layer(torch.ones(1, 300)).sum().backward()


@pytest.mark.parametrize("transposed", [False, True])
def test_the_weights_are_not_copied(transposed: bool) -> None:
    tensor = torch.zeros(4000, 2000, dtype=torch.float16)  # 16 MB
    tensor = tensor.t() if transposed else tensor
    fingerprint(tensor)
    with torch.profiler.profile(profile_memory=True, record_shapes=False) as profiled:
        fingerprint(tensor)
    held = most = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    assert 0 < most < 4 * 2**20


def test_modes_and_subclasses_see_nothing_of_it() -> None:
    seen = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    class Sub(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs)

    tensor = random((40, 300), torch.float16)
    sub = tensor.as_subclass(Sub)
    expected = fingerprint(tensor)
    seen.clear()
    with Mode():
        assert fingerprint(sub) == expected
    assert not seen


# Every change is seen.


@pytest.mark.parametrize("length", range(1, 42))
def test_every_bit_counts(length: int) -> None:
    tensor = random_bytes(length)
    taken = {fingerprint(tensor)}
    for at, bit in itertools.product(range(length), range(8)):
        other = tensor.clone()
        other[at] ^= 1 << bit
        taken.add(fingerprint(other))
    assert len(taken) == 1 + 8 * length


@CHECKED
@given(st.sampled_from(LARGE), st.data())
def test_every_bit_of_a_large_tensor_counts(length: int, data: st.DataObject) -> None:
    tensor = random_bytes(length)
    before = fingerprint(tensor)
    tensor[data.draw(st.integers(0, length - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert fingerprint(tensor) != before


def swapped(tensor: torch.Tensor, one: int, other: int) -> torch.Tensor:
    swapped = tensor.clone()
    swapped[one], swapped[other] = tensor[other], tensor[one]
    return swapped


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.uint8], ids=str)
def test_any_two_that_trade_places_in_a_small_tensor(dtype: torch.dtype) -> None:
    count = 48
    worst = torch.arange(count) << (8 * dtype.itemsize - 6 if dtype.itemsize > 1 else 2)  # only uppermost bits differ
    for tensor in (torch.arange(count).to(dtype), worst.to(dtype)):
        pairs = itertools.combinations(range(count), 2)
        taken = {fingerprint(swapped(tensor, *pair)).sums for pair in pairs} | {fingerprint(tensor).sums}
        assert len(taken) == 1 + count * (count - 1) // 2


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16], ids=str)
@pytest.mark.parametrize("top_only", [False, True])
@CHECKED
@given(st.sampled_from(LARGE), st.data())
def test_any_two_that_trade_places_in_a_large_tensor(
    dtype: torch.dtype, top_only: bool, length: int, data: st.DataObject
) -> None:
    tensor = random_bytes(length // 8 * 8).view(dtype).clone()
    places = st.integers(0, tensor.numel() - 1)
    one = data.draw(places)
    in_row = module.ROW * 8 // dtype.itemsize
    other = data.draw(st.one_of(places, st.just((one + in_row) % tensor.numel()), st.just(one ^ 1)))
    if top_only:  # numbers that are unlike in their sign alone, the bit that sums know least of
        tensor[other] = tensor[one] ^ torch.iinfo(dtype).min
    assume(tensor[one] != tensor[other])
    assert fingerprint(swapped(tensor, one, other)) != fingerprint(tensor)


@CHECKED
@given(st.sampled_from(LARGE), st.lists(st.tuples(st.integers(0), st.integers(1, WRAP - 1)), min_size=2, max_size=3))
def test_any_two_or_three_words_that_change(length: int, changes: list[tuple[int, int]]) -> None:
    tensor = random_bytes(length // 8 * 8).view(torch.int64)
    before = fingerprint(tensor)
    places = {place % tensor.numel(): by for place, by in changes}
    for place, by in places.items():
        tensor[place] += signed(by)
    assert fingerprint(tensor) != before


def test_what_a_sum_alone_would_not_see() -> None:
    tensor = random_bytes(200 * A_ROW).view(torch.int64)
    one = torch.tensor(2**40)
    for first, second in ((0, 1), (0, module.ROW), (5, 90 * module.ROW + 5), (0, 199 * module.ROW + 510)):
        other = tensor.clone()
        other[first] += one
        other[second] -= one
        assert fingerprint(other) != fingerprint(tensor)


def test_the_docstring_tells_what_is_never_seen() -> None:
    tensor = random_bytes(200 * A_ROW).view(torch.int64)
    other = tensor.clone()
    for place, by in ((0, 1), (1, -1), (module.ROW, -1), (module.ROW + 1, 1)):
        other[place] += by
    assert fingerprint(other) == fingerprint(tensor)


CHANGES = {
    "negated": lambda t: -t,
    "half negated": lambda t: torch.cat((-t[: len(t) // 2], t[len(t) // 2 :])),
    "every second negated": lambda t: t * torch.tensor([1, -1]).repeat(t.shape[-1] // 2),
    "moved by one": lambda t: t.reshape(-1).roll(1).view_as(t),
    "moved by a row": lambda t: t.reshape(-1).roll(A_ROW // t.element_size()).view_as(t),
    "rows swapped": lambda t: torch.cat((t[1:2], t[:1], t[2:])),
    "rows reversed": lambda t: t.flip(0),
    "columns reversed": lambda t: t.flip(1),
    "scaled": lambda t: t * 1.01,
    "one number": lambda t: t.index_put((torch.tensor(3), torch.tensor(4)), torch.tensor(77, dtype=t.dtype)),
    "a LoRA": lambda t: t + (torch.randn(len(t), 2).to(t) @ torch.randn(2, t.shape[1]).to(t)) * 0.01,
    "zeros": torch.zeros_like,
}


@pytest.mark.parametrize("shape", [(10, 16), (640, 640)])
@pytest.mark.parametrize("dtype", COMPUTED, ids=str)
@pytest.mark.parametrize("change", CHANGES)
def test_what_happens_to_weights_is_seen(change: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    tensor = torch.randn(shape, dtype=dtype if dtype.is_complex else torch.float32).to(dtype)
    other = CHANGES[change](tensor)
    assert other.dtype == dtype and other.shape == tensor.shape
    assert fingerprint(other) != fingerprint(tensor)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.complex128], ids=str)
@CHECKED
@given(st.integers(0, 2**16), st.integers(1, 2**16))
def test_a_negated_range_where_only_uppermost_bits_change(dtype: torch.dtype, first: int, count: int) -> None:
    tensor = torch.ones(70_000, dtype=dtype)
    other = tensor.clone()
    part = other[first : first + count]
    part.copy_(part.conj().mul(-1).conj() if dtype is torch.float64 else -part)
    assert fingerprint(other) != fingerprint(tensor)
    if dtype is torch.complex64:  # the sign of an imaginary number is its word's uppermost bit
        other = tensor.clone()
        other[first : first + count] = tensor[first : first + count].conj()
        assert fingerprint(other) != fingerprint(tensor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@CHECKED
@given(st.sampled_from([1, 3, 100, 40_000, 300_000]), st.data())
def test_a_random_change_is_seen_in_every_dtype(dtype: torch.dtype, length: int, data: st.DataObject) -> None:
    size = dtype.itemsize
    count = max(1, length // size)
    raw = random_bytes(count * size)
    before = fingerprint(raw.view(dtype))
    start = data.draw(st.integers(0, raw.numel() - 1))
    new = of_bytes(data.draw(st.binary(min_size=1, max_size=40)))[: raw.numel() - start]
    assume(not torch.equal(raw[start : start + len(new)], new))
    raw[start : start + len(new)] = new
    assert fingerprint(raw.view(dtype)) != before


def test_dtype_and_shape_count() -> None:
    tensor = torch.zeros(8, 4, dtype=torch.float16)
    kinds = [tensor, tensor.view(4, 8), tensor.view(32), tensor.view(torch.bfloat16), torch.zeros(8, 4, 0)]
    kinds += [torch.zeros(()), torch.zeros(1), torch.zeros(0), torch.zeros(0, 3), torch.zeros(2)]
    assert len({fingerprint(kind) for kind in kinds}) == len(kinds)


# What is made of other tensors, and what cannot be read.


class Wrapper(torch.Tensor):
    """As quantizers make them: no memory of its own."""

    @staticmethod
    def __new__(cls, data: torch.Tensor, scale: torch.Tensor) -> Wrapper:
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=torch.float16, device=data.device)

    def __init__(self, data: torch.Tensor, scale: torch.Tensor) -> None:
        self._data, self.scale = data, scale

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        assert func is torch.ops.aten.detach.default, func  # by nn.Parameter
        return cls(args[0]._data, args[0].scale)


class Flat(Wrapper):
    def __tensor_flatten__(self):
        return ["_data", "scale"], None


def test_the_inner_tensors_of_a_subclass_count() -> None:
    data, scale = torch.zeros(80, 90, dtype=torch.int8), torch.ones(80)
    before = fingerprint(Flat(data, scale))
    assert before.readable and before == fingerprint(Flat(data.clone(), scale.clone()))
    assert before.differs(fingerprint(Flat(data, scale * 2)))
    assert before.differs(fingerprint(Flat(data + 1, scale)))
    assert before.parts == (fingerprint(data), fingerprint(scale))
    assert fingerprint(Wrapper(data, scale)).parts == (fingerprint(data),)


def test_a_parameter_of_such_a_subclass() -> None:
    layer = nn.Module()
    layer.weight = nn.Parameter(Flat(torch.zeros(4, 4, dtype=torch.int8), torch.ones(4)), requires_grad=False)
    before = fingerprints(layer)
    layer.weight.scale.mul_(2)
    assert changed(before, fingerprints(layer)) == ["weight"]


def test_sparse_tensors() -> None:
    dense = torch.eye(70) * 3
    for sparse in (dense.to_sparse(), dense.to_sparse_csr(), dense.to_sparse_csc(), dense.to_sparse_bsr((7, 7))):
        taken = fingerprint(sparse)
        assert taken.readable and taken == fingerprint(sparse.clone()) and taken.differs(fingerprint(sparse * 2))


def test_what_has_no_bytes_is_marked() -> None:
    meta = torch.empty(3, 4, dtype=torch.float16, device="meta")
    lazy = nn.LazyLinear(3)
    gone = torch.ones(8)
    gone.untyped_storage().resize_(0)
    quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    unknown = Wrapper(torch.ones(2), torch.ones(2))
    del unknown._data
    for tensor in (meta, lazy.weight, gone, quantized, unknown):
        assert not fingerprint(tensor).readable
    assert fingerprint(meta) == Fingerprint(torch.float16, (3, 4))


def test_what_could_be_read_only_once_is_told_by_dtype_and_shape() -> None:
    there = {"weight": fingerprint(torch.ones(3, 4))}
    away = {"weight": fingerprint(torch.ones(3, 4, device="meta"))}
    assert changed(there, away) == changed(away, there) == changed(away, away) == []
    assert changed(there, {"weight": fingerprint(torch.ones(4, 3, device="meta"))}) == ["weight"]
    assert changed(there, {"weight": fingerprint(torch.ones(3, 4).half())}) == ["weight"]
    flat = {"weight": fingerprint(Flat(torch.ones(3, 4), torch.ones(3)))}
    plain = {"weight": fingerprint(torch.ones(3, 4).half())}
    assert changed(flat, plain) == ["weight"]


# Components.


def component() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 400), nn.BatchNorm1d(400), nn.Linear(400, 300, bias=False))
    model.register_buffer("hidden", torch.ones(3), persistent=False)
    return model


def test_all_parameters_and_buffers_by_name() -> None:
    model = component()
    assert list(fingerprints(model)) == ["hidden", *model.state_dict()]
    assert fingerprints(model) == {
        "hidden": fingerprint(model.hidden),
        **{name: fingerprint(tensor) for name, tensor in model.state_dict().items()},
    }


def test_many_tensors_of_all_sizes_are_as_each_alone() -> None:
    model = nn.Module()
    for number, length in enumerate([*LENGTHS, *range(40), *[30_000] * 9, 8 * 511 * 70_000]):
        model.register_buffer(f"t{number}", random_bytes(length, number))
    taken = fingerprints(model)
    assert all(taken[name] == fingerprint(tensor) for name, tensor in model.named_buffers())


def test_one_tensor_with_several_names_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = component()
    model.tied = nn.Module()
    model.tied.weight = model[0].weight
    added = []
    monkeypatch.setattr(module._Sums, "add", lambda self, tensor: added.append(tensor) or (0, 0))
    names = fingerprints(model)
    assert {"0.weight", "tied.weight"} <= set(names)
    assert len(added) == len(names) - 1


def test_no_component_at_all() -> None:
    assert fingerprints(nn.Module()) == {} and changed({}, {}) == []


def test_changed_names_what_changed_came_and_went() -> None:
    model = component()
    before = fingerprints(model)
    assert changed(before, fingerprints(model)) == []
    with torch.no_grad():
        model[2].weight.view(-1)[[7, 90_000]] = model[2].weight.view(-1)[[90_000, 7]]
    model[0].bias = None
    model.new = nn.Parameter(torch.ones(1))
    assert changed(before, fingerprints(model)) == ["0.bias", "2.weight", "new"]


def test_a_component_that_lies_on_no_device_and_on_one() -> None:
    model = component()
    model.register_buffer("away", torch.ones(3, device="meta"))
    taken = fingerprints(model)
    assert [name for name, one in taken.items() if not one.readable] == ["away"]

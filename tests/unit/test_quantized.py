"""P16: components whose weights are stored in another kind of dtype than they are computed in. Nothing is ever cast to
a storage dtype, nothing is found where nothing is wrong, and LibGuard looks inside only after a call has raised."""

from __future__ import annotations

import pytest
import torch
from one_model import Guarded, OneModel
from torch import nn
from torch.nn import functional as F

from lib_guard.guards import component_crossing
from lib_guard.hosts.base import Boundary
from lib_guard.tensors import reconcile
from lib_guard.tensors.census import take_census
from lib_guard.tensors.dtypes import COMPUTE_DTYPES
from lib_guard.tensors.layers import is_quantized

HALF, BF16, FLOAT = torch.float16, torch.bfloat16, torch.float32

pytestmark = pytest.mark.parametrize("row", ["P16-unit"])


class Float8(nn.Module):
    """As diffusers' layerwise casting does, in one layer: stored in float8, computed in what it is given."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, size).to(torch.float8_e4m3fn), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(size, dtype=HALF), requires_grad=False)

    def forward(self, x):
        return F.linear(x, self.weight.to(HALF), self.bias)


class Int8(nn.Module):
    """As SDNQ and bitsandbytes do: int8 and a float32 scale."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        stored = torch.randint(-127, 127, (size, size), dtype=torch.int8)
        self.weight = nn.Parameter(stored, requires_grad=False)
        self.scale = nn.Parameter(torch.full((size, 1), 0.01, dtype=FLOAT), requires_grad=False)

    def forward(self, x):
        return F.linear(x, (self.weight.float() * self.scale).half())


class Packed4(nn.Module):
    """As 4-bit formats do: two numbers a byte, in uint8."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        stored = torch.randint(0, 255, (size, size // 2), dtype=torch.uint8)
        self.weight = nn.Parameter(stored, requires_grad=False)

    def forward(self, x):
        both = torch.stack((self.weight & 15, self.weight >> 4), dim=-1).flatten(1)
        return F.linear(x, (both.half() - 8) / 16)


class GgufTensor(torch.Tensor):
    """As GGUF loaders do (diffusers/quantizers/gguf/utils.py, Forge's backend/operations_gguf.py): bytes that know how
    to unpack themselves, and do so in any operation."""

    @staticmethod
    def make(size: int) -> GgufTensor:
        return torch.randint(-127, 127, (size, size), dtype=torch.int8).as_subclass(GgufTensor)

    def unpacked(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor).half() * 0.01

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            return func(*(arg.unpacked() if isinstance(arg, cls) else arg for arg in args), **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})


class Gguf(nn.Module):
    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.weight = nn.Parameter(GgufTensor.make(size), requires_grad=False)

    def forward(self, x):
        return F.linear(x, self.weight)


KINDS = {"float8": Float8, "int8": Int8, "uint8": Packed4, "gguf": Gguf}


class Component(nn.Module):
    """A quantized layer between two ordinary ones, as in every quantized UNet."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.stored, self.last = nn.Linear(8, 8).half(), kind(), nn.Linear(8, 8).half()

    def forward(self, x):
        return self.last(self.stored(self.first(x)))


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def component(request):
    # A fresh one for each test: what has raised before is armed from the start.
    return Component(request.param)


@pytest.fixture
def modes(monkeypatch) -> list[reconcile.Reconcile]:
    """Every mode that is entered."""
    entered: list[reconcile.Reconcile] = []
    enter = reconcile.Reconcile.enter

    def noted(self):
        entered.append(self)
        enter(self)

    monkeypatch.setattr(reconcile.Reconcile, "enter", noted)
    return entered


def on(module: nn.Module) -> Guarded:
    return Guarded(OneModel(lambda: [Boundary("unet", module)]))


def stored(module: nn.Module) -> list[tuple[str, torch.dtype, torch.Tensor]]:
    """The weights as bits; some storage dtypes cannot be compared as numbers."""
    weights = ((name, p.detach().as_subclass(torch.Tensor)) for name, p in module.named_parameters())
    return [(name, w.dtype, w.contiguous().view(torch.uint8).clone()) for name, w in weights]


def assert_untouched(module: nn.Module, before: list[tuple[str, torch.dtype, torch.Tensor]]) -> None:
    after = stored(module)
    assert [(name, dtype) for name, dtype, _ in after] == [(name, dtype) for name, dtype, _ in before]
    assert all(torch.equal(bits, other) for (_, _, bits), (_, _, other) in zip(after, before))


def test_it_is_known_for_what_it_is(row, component):
    assert is_quantized(component) and not is_quantized(component.first)
    census = take_census(component)
    assert set(census.values) <= COMPUTE_DTYPES and census.uniform is HALF, "a scale is no straggler"


@torch.no_grad()
def test_a_healthy_one_keeps_every_bit_is_not_looked_into_and_nothing_is_said(row, component, modes):
    x, before = torch.randn(2, 8).half(), stored(component)
    expected = component(x)
    with on(component) as guarded:
        assert all(torch.equal(component(x), expected) for _ in range(3))
    assert guarded.reports == [] and modes == []
    assert_untouched(component, before)


@torch.no_grad()
def test_it_is_armed_once_a_call_has_raised_and_then_cures_it(row, component, modes, monkeypatch):
    """A float32 context into a quantized half UNet: the first call fails as without LibGuard, the next one does not."""
    x, before = torch.randn(2, 8), stored(component)
    with pytest.raises(RuntimeError):
        component(x)
    targets = casts_of(monkeypatch)
    with on(component) as guarded:
        with pytest.raises(RuntimeError):
            component(x)
        assert modes == [] and guarded.reports == []
        result = component(x)
        assert len(modes) == 1
    assert result.dtype is FLOAT and torch.equal(result, component(x.half()).float())
    assert guarded.codes == ["LG112"] and targets and targets <= COMPUTE_DTYPES
    assert_untouched(component, before)
    assert component in component_crossing._RAISED


@torch.no_grad()
def test_a_fault_in_a_component_beside_it_does_not_arm_it(row, component, modes):
    other = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8).half())
    boundaries = [Boundary("text_encoder", other), Boundary("unet", component)]
    with Guarded(OneModel(lambda: boundaries)) as guarded:
        embedding = other(torch.randn(2, 8))
        component(embedding.half())
    assert guarded.codes == ["LG111"] and len(modes) == 1


@torch.no_grad()
@pytest.mark.parametrize("given", [HALF, BF16, FLOAT], ids=str)
def test_an_error_of_another_kind_arms_it_and_comes_out_as_it_was(row, component, given):
    wrong_shape, right = torch.randn(2, 5).to(given), torch.ones(2, 8).half()
    expected, healthy = error_of(component, wrong_shape), component(right)
    with on(component) as guarded:
        assert [error_of(component, wrong_shape) for _ in range(2)] == [expected] * 2
        assert torch.equal(component(right), healthy)
    assert guarded.reports == []


def error_of(module: nn.Module, x: torch.Tensor) -> str:
    with pytest.raises(RuntimeError) as raised:
        module(x)
    return str(raised.value)


def casts_of(monkeypatch) -> set[torch.dtype]:
    """Every dtype that Reconcile casts operands to."""
    targets: set[torch.dtype] = set()
    aligned = reconcile._Call.aligned

    def noted(self, dtype):
        targets.add(dtype)
        return aligned(self, dtype)

    monkeypatch.setattr(reconcile._Call, "aligned", noted)
    return targets


def test_the_promoted_dtype_of_mixed_storage_is_never_a_storage_dtype(row):
    seen: list[reconcile.Mismatch] = []
    eight = torch.ones(4, 4).to(torch.float8_e4m3fn)
    mode = reconcile.Reconcile(lambda dtypes: torch.float8_e4m3fn, seen.append)
    with mode:
        assert F.linear(torch.ones(2, 4).half(), torch.ones(4, 4)).dtype is FLOAT
        with pytest.raises(RuntimeError):
            F.linear(torch.ones(2, 4).half(), eight)
    assert [mismatch.target for mismatch in seen] == [FLOAT]

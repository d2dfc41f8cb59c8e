"""Random module trees with a random dtype for each parameter, run under the mode that aligns an operation's operands.

"Within the rounding of the widest dtype met" is held in two statements, because taken alone it is true only of trees
whose activations enter in that dtype (a float16 sum of float16 tensors rounds to float16, with the mode or without):

* every operation by itself: what torch does with unequal dtypes is left as it is, bit for bit; what it refuses equals,
  bit for bit, the same operation on operands that the test has promoted by hand to the widest dtype among them, and
  is rounded once where it is written into a tensor that must stay;
* the whole tree, against float64: the error is a small multiple of the operations' own roundings added up, each in the
  dtype that the first statement gives it; and where the activations enter in the widest dtype met, that is the dtype
  of every one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_map

from lib_guard.tensors.reconcile import Mismatch, Reconcile


def _cpu_computes_in_half() -> bool:
    try:
        F.conv2d(*[torch.ones(1, 1, 2, 2, dtype=torch.float16)] * 2)
    except RuntimeError:
        return False
    return True


HALF, BF16, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
#: Older versions of torch have no float16 kernels for the CPU; with them float16 fails whatever the mode does.
DTYPES = (HALF, BF16, FLOAT, DOUBLE) if _cpu_computes_in_half() else (BF16, FLOAT, DOUBLE)
#: From the narrowest to the widest. Neither of the first two holds the other's values.
WIDTH = {HALF: 0, BF16: 0, FLOAT: 1, DOUBLE: 2}
CHANNELS, SIDE = 8, 3
#: How much of the operations' roundings may reach the result. A convolution alone, which adds up 72 products, comes to
#: 1.0; of 5,000 trees drawn at random none came to more than 0.7.
GAIN = 4

CHECKED = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


# The trees: modules that take and give activations of one shape, [2, CHANNELS, SIDE, SIDE].


def parameter(*shape: int, scale: float = 1.0, shift: float = 0.0) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * scale + shift)


class Linear(nn.Linear):
    """On the channels of a picture."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Embedded(nn.Module):
    """Adds a row of a table to each picture, as a UNet does with the time."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, CHANNELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table(torch.tensor([1, 3]))[:, :, None, None]


class Attention(nn.Module):
    """The attention block of a VAE: norm, three projections, attention, projection, sum."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, CHANNELS)
        self.q, self.k, self.v, self.out = (nn.Linear(CHANNELS, CHANNELS) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        split = [layer(tokens).unflatten(2, (2, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v)]
        attended = F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
        return x + self.out(attended).transpose(1, 2).unflatten(2, (SIDE, SIDE))


class Heads(nn.Module):
    """torch's own attention module, with tokens in front of the batch.

    With batch_first, in evaluation and without gradients it has a fast path for equal dtypes, which torch switches off
    while any function mode is active, whatever that does. The two paths differ in the last bits; that is torch's doing
    and no part of what is tested here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, CHANNELS)
        self.heads = nn.MultiheadAttention(CHANNELS, 2, batch_first=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(x).flatten(2).permute(2, 0, 1)
        return x + self.heads(tokens, tokens, tokens, need_weights=False)[0].permute(1, 2, 0).reshape(x.shape)


class InPlace(nn.Module):
    """Writes a parameter into a copy of the activations, which keeps their dtype."""

    def __init__(self, write: Callable[[torch.Tensor, torch.Tensor], object], values: nn.Parameter) -> None:
        super().__init__()
        self.write, self.values = write, values

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        self.write(x, self.values)
        return x


class Residual(nn.Module):
    """A sum around its children."""

    def __init__(self, *children: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*children)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


class SiluInPlace(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(x.clone(), inplace=True)


def _mix_channels(x: torch.Tensor, values: torch.Tensor) -> None:
    pixels = x.view(2, CHANNELS, -1)
    pixels.baddbmm_(values, pixels.clone())


def _assign(x: torch.Tensor, values: torch.Tensor) -> None:
    x[:, torch.tensor([0, 5])] = values


LEAVES: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
    "linear": lambda: Linear(CHANNELS, CHANNELS),
    "group norm": lambda: nn.GroupNorm(2, CHANNELS),
    "layer norm": lambda: nn.LayerNorm((CHANNELS, SIDE, SIDE)),
    "embedding": Embedded,
    "attention": Attention,
    "heads": Heads,
    "silu": nn.SiLU,
    "silu in place": SiluInPlace,
    "add_": lambda: InPlace(torch.Tensor.add_, parameter(CHANNELS, 1, 1, scale=0.5)),
    "mul_": lambda: InPlace(torch.Tensor.mul_, parameter(CHANNELS, 1, 1, scale=0.1, shift=1.0)),
    "assignment": lambda: InPlace(_assign, parameter(2, SIDE, SIDE)),
    "index_add_": lambda: InPlace(
        lambda x, values: x.index_add_(1, torch.tensor([0, 5, 0]), values),
        parameter(2, 3, SIDE, SIDE, scale=0.5),
    ),
    "baddbmm_": lambda: InPlace(_mix_channels, parameter(2, CHANNELS, CHANNELS, scale=0.3)),
}
BRANCHES: dict[str, Callable[..., nn.Module]] = {"sequence": nn.Sequential, "residual": Residual}

Tree = Any
_PARTS: st.SearchStrategy[Tree] = st.recursive(
    st.sampled_from(sorted(LEAVES)),
    lambda parts: st.tuples(st.sampled_from(sorted(BRANCHES)), st.lists(parts, min_size=1, max_size=3)),
    max_leaves=4,
)
TREES: st.SearchStrategy[Tree] = st.tuples(st.just("sequence"), st.lists(_PARTS, min_size=2, max_size=4))


# Cases: a tree, and a dtype for its input and for each of its parameters.


@dataclass(frozen=True)
class Case:
    """A tree with the dtypes of its parameters, in their order, and of its input."""

    tree: Tree
    dtypes: tuple[torch.dtype, ...]
    given: torch.dtype

    @property
    def mixed(self) -> bool:
        return len({*self.dtypes, self.given}) > 1

    @property
    def widest(self) -> torch.dtype:
        return widest({*self.dtypes, self.given})

    def module(self) -> nn.Module:
        """The same weights each time, rounded to the case's dtypes."""
        module = build(self.tree)
        for weight, dtype in zip(module.parameters(), self.dtypes):
            weight.data = weight.data.to(dtype)
        return module

    def input(self) -> torch.Tensor:
        return torch.randn(2, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(7)).to(self.given)


def build(tree: Tree) -> nn.Module:
    """A tree of modules in float32, for evaluation."""
    torch.manual_seed(0)
    return _grown(tree).eval()


def _grown(tree: Tree) -> nn.Module:
    if isinstance(tree, tuple):
        return BRANCHES[tree[0]](*[_grown(child) for child in tree[1]])
    return LEAVES[tree]()


def widest(dtypes: set[torch.dtype]) -> torch.dtype:
    """The narrowest dtype that holds the values of all; made without what is tested."""
    most = max(WIDTH[dtype] for dtype in dtypes)
    return FLOAT if {HALF, BF16} == dtypes else next(dtype for dtype in dtypes if WIDTH[dtype] == most)


@st.composite
def cases(draw: st.DrawFn, entering_widest: bool = False) -> Case:
    tree = draw(TREES)
    palette = draw(st.lists(st.sampled_from(DTYPES), min_size=2, max_size=3, unique=True))
    dtypes = tuple(draw(st.sampled_from(palette)) for _ in build(tree).parameters())
    return Case(tree, dtypes, widest(set(palette)) if entering_widest else draw(st.sampled_from(palette)))


# Each operation is made a second time, by hand, and compared.

#: Operations that give back values as they are, so that nothing is rounded in them.
EXACT = {
    "__get__",
    "permute",
    "transpose",
    "flatten",
    "unflatten",
    "reshape",
    "view",
    "clone",
    "__getitem__",
    "embedding",
}
#: The in-place operations of the trees.
WRITING = {"__setitem__", "add_", "mul_", "index_add_", "baddbmm_"}


class Audit(torch.overrides.TorchFunctionMode):
    """Entered after the mode that is tested, it sees every operation as the tree makes it, and what the tree gets.

    refused: the operations that torch refuses. rounded: the dtypes that results were rounded to, one an operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.refused: list[str] = []
        self.rounded: list[torch.dtype] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        writes = func.__name__ in WRITING or kwargs.get("inplace") is True
        with torch._C.DisableTorchFunction():
            target = args[0].clone() if writes else None
            expected = self._by_hand(func, (target, *args[1:]) if writes else args, kwargs)
        result = func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            compare(func, result, expected)
            if writes:
                assert result is None or result is args[0]
                compare(func, args[0], target)
            if func.__name__ not in EXACT:
                self.rounded += [tensor.dtype for tensor in floating(args[0] if writes else result)]
        return result

    def _by_hand(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What torch gives by itself; where it refuses, what it gives for operands that are all in the widest dtype."""
        try:
            return func(*args, **kwargs)
        except RuntimeError:
            self.refused.append(func.__name__)
        met = {tensor.dtype for tensor in floating((args, kwargs))}
        assert len(met) > 1, "refused for another reason than dtypes"
        wide = tree_map(lambda value: value.to(widest(met)) if floating(value) else value, (args, kwargs))
        result = func(*wide[0], **wide[1])
        if func.__name__ in WRITING:
            args[0].copy_(wide[0][0])
            return args[0] if result is not None else None
        return result


def floating(value: Any) -> list[torch.Tensor]:
    """The floating tensors in a call's arguments, or in what it returns."""
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


def compare(func: Any, result: Any, expected: Any) -> None:
    for got, wanted in zip(floating(result), floating(expected), strict=True):
        same = got.dtype is wanted.dtype and torch.equal(got, wanted)
        assert same, f"{func.__name__} gave {got.dtype}, by hand {wanted.dtype}"


def run(module: nn.Module, x: torch.Tensor, *modes: torch.overrides.TorchFunctionMode) -> torch.Tensor:
    with torch.no_grad(), ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        return module(x)


def error(case: Case, result: torch.Tensor) -> float:
    """The relative error against the same tree in float64, into which all its weights fit exactly."""
    exact = run(case.module().double(), case.input().double())
    return float((result.double() - exact).norm() / exact.norm())


def roundings(audit: Audit) -> float:
    """What the operations' own roundings add up to, relative to their results."""
    return sum(torch.finfo(dtype).eps for dtype in audit.rounded)


def promoting(seen: list[Mismatch]) -> Reconcile:
    return Reconcile(lambda dtypes: None, seen.append)


def state(module: nn.Module) -> list[tuple[object, ...]]:
    """All that could be changed in a tree: its tensors' identity, dtype, place and version, and its attributes."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    told: list[tuple[object, ...]] = [(n, id(t), t.dtype, t.data_ptr(), t._version, type(t)) for n, t in tensors]
    return told + [(id(value),) for part in module.modules() for value in vars(part).values()]


@given(case=cases())
@CHECKED
def test_every_operation_is_left_alone_or_computed_in_the_widest_dtype_of_its_operands(case):
    module, x = case.module(), case.input()
    before, given_values, seen, audit = state(module), x.clone(), [], Audit()
    result = run(module, x, promoting(seen), audit)
    assert [mismatch.operation for mismatch in seen] == audit.refused
    assert [mismatch.target for mismatch in seen if mismatch.operation not in WRITING] == [
        widest(set(mismatch.dtypes)) for mismatch in seen if mismatch.operation not in WRITING
    ]
    assert error(case, result) <= GAIN * roundings(audit)
    assert state(module) == before and torch.equal(x, given_values)


@given(case=cases(entering_widest=True))
@CHECKED
def test_what_enters_in_the_widest_dtype_met_stays_within_its_rounding(case):
    audit = Audit()
    result = run(case.module(), case.input(), promoting([]), audit)
    assert result.dtype is case.widest and set(audit.rounded) <= {case.widest}
    assert error(case, result) <= GAIN * roundings(audit)


@given(tree=TREES, dtype=st.sampled_from(DTYPES))
@CHECKED
def test_with_one_dtype_not_a_bit_changes(tree, dtype):
    case = Case(tree, (dtype,) * len(list(build(tree).parameters())), dtype)
    module, seen = case.module(), []
    before = state(module)
    result = run(module, case.input(), promoting(seen))
    expected = run(module, case.input())
    assert result.dtype is expected.dtype and torch.equal(result, expected)
    assert not seen and state(module) == before


def test_without_the_mode_most_of_these_trees_fail():
    """Or what is shown above would be shown of trees that need no help."""
    failed = []

    @given(case=cases())
    @CHECKED
    def try_without(case: Case) -> None:
        if case.mixed:
            try:
                run(case.module(), case.input())
            except RuntimeError:
                failed.append(True)
            else:
                failed.append(False)

    try_without()
    assert len(failed) >= 75 and sum(failed) / len(failed) > 0.6, f"{sum(failed)} of {len(failed)}"


WIDE = Case(("sequence", ["conv", "index_add_", "attention"]), (BF16, FLOAT, FLOAT) + (BF16, FLOAT) * 5, FLOAT)


def test_a_mode_that_narrows_is_noticed():
    with pytest.raises(AssertionError, match="by hand"):
        run(WIDE.module(), WIDE.input(), Reconcile(lambda dtypes: BF16, lambda mismatch: None), Audit())
    audit = Audit()
    run(WIDE.module(), WIDE.input(), promoting([]), audit)
    narrow = run(WIDE.module(), WIDE.input(), Reconcile(lambda dtypes: BF16, lambda mismatch: None))
    assert error(WIDE, narrow) > 100 * GAIN * roundings(audit)

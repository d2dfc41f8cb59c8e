"""The mode that aligns an operation's operands: only where a call raises, and with no other effect."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils import checkpoint

from lib_guard.tensors import reconcile
from lib_guard.tensors.reconcile import MATRIX_OPERATIONS, Mismatch, Reconcile

HALF, BF16, FLOAT = torch.float16, torch.bfloat16, torch.float32
DTYPES = (HALF, BF16, FLOAT)


def promoting(seen: list[Mismatch] | None = None, **options) -> Reconcile:
    return Reconcile(lambda dtypes: None, (seen if seen is not None else []).append, **options)


class Watching(torch.overrides.TorchFunctionMode):
    """Keeps the errors of the calls that reach a function mode."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        try:
            return func(*args, **(kwargs or {}))
        except RuntimeError as error:
            self.errors.append(str(error))
            raise


def operands(*shapes, dtypes):
    torch.manual_seed(0)
    return [torch.randn(shape).to(dtype) for shape, dtype in zip(shapes, dtypes)]


def head_attention(x, in_weight, in_bias, out_weight, out_bias):
    return F.multi_head_attention_forward(
        *(x, x, x, 8, 2, in_weight, in_bias, None, None, False, 0.0, out_weight, out_bias), training=False
    )[0]


INDEX, MASK = torch.tensor([0, 2]), torch.tensor([True, False, True, False])
QKV = [(1, 2, 4, 8)] * 3
OPERATIONS = {
    "conv1d": (F.conv1d, [(1, 3, 6), (4, 3, 3), (4,)]),
    "conv2d": (F.conv2d, [(1, 3, 6, 6), (4, 3, 3, 3), (4,)]),
    "conv3d": (F.conv3d, [(1, 2, 4, 4, 4), (3, 2, 3, 3, 3), (3,)]),
    "conv_transpose1d": (F.conv_transpose1d, [(1, 3, 6), (3, 4, 3), (4,)]),
    "conv_transpose2d": (F.conv_transpose2d, [(1, 3, 6, 6), (3, 4, 3, 3), (4,)]),
    "linear": (F.linear, [(2, 5), (3, 5), (3,)]),
    "bilinear": (F.bilinear, [(2, 5), (2, 4), (3, 5, 4), (3,)]),
    "matmul": (torch.matmul, [(2, 5), (5, 3)]),
    "operator": (lambda a, b: a @ b, [(2, 5), (5, 3)]),
    "mm": (torch.mm, [(2, 5), (5, 3)]),
    "mv": (torch.mv, [(2, 5), (5,)]),
    "bmm": (torch.bmm, [(2, 3, 4), (2, 4, 5)]),
    "dot": (torch.dot, [(5,), (5,)]),
    "vdot": (torch.vdot, [(5,), (5,)]),
    "inner": (torch.inner, [(2, 5), (3, 5)]),
    "tensordot": (lambda a, b: torch.tensordot(a, b, 1), [(2, 5), (5, 3)]),
    "addmm": (torch.addmm, [(2, 3), (2, 5), (5, 3)]),
    "addmv": (torch.addmv, [(2,), (2, 5), (5,)]),
    "addbmm": (torch.addbmm, [(3, 5), (2, 3, 4), (2, 4, 5)]),
    "baddbmm": (torch.baddbmm, [(2, 3, 5), (2, 3, 4), (2, 4, 5)]),
    "einsum": (lambda a, b: torch.einsum("ij,jk->ik", a, b), [(2, 5), (5, 3)]),
    "einsum of three": (lambda *t: torch.einsum("ij,jk,kl->il", *t), [(2, 5), (5, 3), (3, 2)]),
    "multi_dot": (lambda *t: torch.linalg.multi_dot(t), [(2, 3), (3, 4), (4, 2)]),
    "attention": (F.scaled_dot_product_attention, QKV),
    "attention, added mask": (lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, mask), [*QKV, (4, 4)]),
    "attention, bool mask": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(4, 4, dtype=torch.bool)),
        QKV,
    ),
    "head attention": (head_attention, [(3, 2, 8), (24, 8), (24,), (8, 8), (8,)]),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (8,), w, b), [(2, 8), (8,), (8,)]),
    "group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b), [(2, 8, 3), (8,), (8,)]),
    "batch_norm": (lambda x, m, v, w, b: F.batch_norm(x, m, v.abs(), w, b), [(2, 8, 3), (8,), (8,), (8,), (8,)]),
    "instance_norm": (lambda x, w, b: F.instance_norm(x, None, None, w, b), [(2, 8, 3), (8,), (8,)]),
    "prelu": (F.prelu, [(2, 8), (8,)]),
    "grid_sample": (lambda x, grid: F.grid_sample(x, grid, align_corners=False), [(1, 1, 4, 4), (1, 3, 3, 2)]),
    "embedding": (lambda w, x: F.linear(x, F.embedding(INDEX, w)), [(4, 5), (3, 5)]),
    "cdist": (torch.cdist, [(3, 4), (5, 4)]),
    "cross": (lambda a, b: torch.cross(a, b, dim=-1), [(2, 3), (2, 3)]),
    "lerp": (torch.lerp, [(3,), (3,), (3,)]),
    "index_put": (lambda x, y: x.index_put((INDEX,), y), [(4,), (2,)]),
    "index_copy": (lambda x, y: x.index_copy(0, INDEX, y), [(4,), (2,)]),
    "index_add": (lambda x, y: x.index_add(0, INDEX, y), [(4,), (2,)]),
    "scatter": (lambda x, y: x.scatter(0, INDEX, y), [(4,), (2,)]),
    "scatter_add": (lambda x, y: x.scatter_add(0, INDEX, y), [(4,), (2,)]),
    "masked_scatter": (lambda x, y: x.masked_scatter(MASK, y), [(4,), (2,)]),
    "linear by keywords": (lambda x, w: F.linear(input=x, weight=w), [(2, 5), (3, 5)]),
}

#: Calls that write into their first operand, which torch refuses for unequal dtypes.
IN_PLACE = {
    "x[i] = y": (lambda x, y: x.__setitem__(INDEX, y), [(4,), (2,)]),
    "x[mask] = y": (lambda x, y: x.__setitem__(MASK, y), [(4,), (2,)]),
    "x[i, :] = y": (lambda x, y: x.__setitem__((INDEX, slice(None)), y), [(4, 3), (2, 3)]),
    "index_put_": (lambda x, y: x.index_put_((INDEX,), y), [(4,), (2,)]),
    "index_put_ by keywords": (lambda x, y: torch.index_put_(input=x, indices=[INDEX], values=y), [(4,), (2,)]),
    "index_put_ accumulating": (lambda x, y: x.index_put_((INDEX,), y, accumulate=True), [(4,), (2,)]),
    "index_put_ as an overload": (lambda x, y: torch.ops.aten.index_put_.default(x, [INDEX], y), [(4,), (2,)]),
    "index_copy_": (lambda x, y: x.index_copy_(0, INDEX, y), [(4,), (2,)]),
    "index_add_": (lambda x, y: x.index_add_(0, INDEX, y), [(4,), (2,)]),
    "scatter_": (lambda x, y: x.scatter_(0, INDEX, y), [(4,), (2,)]),
    "scatter_add_": (lambda x, y: x.scatter_add_(0, INDEX, y), [(4,), (2,)]),
    "masked_scatter_": (lambda x, y: x.masked_scatter_(MASK, y), [(4,), (2,)]),
    "lerp_": (lambda x, y, w: x.lerp_(y, w), [(3,), (3,), (3,)]),
    "addmm_": (lambda x, a, b: x.addmm_(a, b), [(2, 3), (2, 5), (5, 3)]),
    "baddbmm_": (lambda x, a, b: x.baddbmm_(a, b), [(2, 3, 5), (2, 3, 4), (2, 4, 5)]),
    "a list of targets": (lambda x, y: torch._foreach_lerp_([x], [y], 0.3), [(3,), (3,)]),
    "matmul into out": (lambda out, a, b: torch.matmul(a, b, out=out), [(2, 3), (2, 5), (5, 3)]),
    "addmm_ through a view": (lambda x, w: x[1:].addmm_(w, w), [(4, 3), (3, 3)]),
}

#: Calls of modules: one that makes the module, and one that calls it.
MODULES = {
    "MultiheadAttention, where there is a fast path": (
        lambda: nn.MultiheadAttention(8, 2, batch_first=True).eval(),
        lambda module, x: module(x, x, x, need_weights=False)[0],
    ),
    "MultiheadAttention, where there is none": (
        lambda: nn.MultiheadAttention(8, 2),
        lambda module, x: module(x, x, x)[0],
    ),
    "MultiheadAttention, added mask of another dtype": (
        lambda: nn.MultiheadAttention(8, 2),
        lambda module, x: module(x, x, x, attn_mask=torch.zeros(2, 2))[0],
    ),
    "TransformerEncoderLayer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(),
        lambda module, x: module(x),
    ),
    "LSTMCell": (lambda: nn.LSTMCell(8, 8), lambda module, x: module(x[0])[0]),
    "GRUCell": (lambda: nn.GRUCell(8, 8), lambda module, x: module(x[0])),
    "PReLU": (nn.PReLU, lambda module, x: module(x)),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(3).eval(), lambda module, x: module(x)),
    "Linear under a checkpoint": (
        lambda: nn.Linear(8, 4),
        lambda module, x: checkpoint.checkpoint(module, x, use_reentrant=False),
    ),
}

#: Operations of the list that are no `MATRIX_OPERATIONS`, so that a compute dtype does not concern them.
BESIDES_MATRICES = (
    *("prelu", "grid_sample", "embedding", "cdist", "cross", "lerp"),
    *("index_put", "index_copy", "index_add", "scatter", "scatter_add", "masked_scatter"),
)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_that_raises_without_it_runs_in_the_promoted_dtype(name):
    call, shapes = OPERATIONS[name]
    raised = 0
    for wide in range(len(shapes)):
        for narrow, other in ((HALF, FLOAT), (FLOAT, BF16), (BF16, HALF)):
            dtypes = [narrow if i == wide else other for i in range(len(shapes))]
            given_operands = operands(*shapes, dtypes=dtypes)
            try:
                call(*given_operands)
            except RuntimeError:
                raised += 1
            else:
                continue
            seen: list[Mismatch] = []
            with promoting(seen):
                result = call(*given_operands)
            expected = call(*[tensor.float() for tensor in given_operands])
            assert result.dtype is FLOAT and torch.equal(result, expected)
            assert len(seen) == 1 and seen[0].target is FLOAT and set(seen[0].dtypes) == set(dtypes) and seen[0].error
    assert raised, f"{name} raised for no mix, so this proves nothing"


@pytest.mark.parametrize("name", OPERATIONS)
@given(dtype=st.sampled_from(DTYPES))
@settings(max_examples=3, deadline=None)
def test_uniform_operands_give_the_same_bits_and_are_not_reported(name, dtype):
    call, shapes = OPERATIONS[name]
    given_operands = operands(*shapes, dtypes=[dtype] * len(shapes))
    seen = []
    try:
        expected = call(*given_operands)
    except RuntimeError as error:
        assert "not implemented" in str(error)
        with promoting(seen):
            result = call(*given_operands)
        assert torch.equal(result, call(*[tensor.float() for tensor in given_operands]).to(dtype))
        assert len(seen) == 1 and set(seen[0].dtypes) == {dtype} and seen[0].target is FLOAT
        return
    with promoting(seen):
        result = call(*given_operands)
    assert torch.equal(result, expected) and result.dtype is expected.dtype and not seen


@given(dtypes=st.tuples(*[st.sampled_from(DTYPES)] * 2), scalar=st.booleans())
@settings(max_examples=20, deadline=None)
def test_what_promotes_by_itself_is_left_to_it(dtypes, scalar):
    a, b = operands((3,), () if scalar else (3,), dtypes=dtypes)
    seen = []
    with promoting(seen):
        results = [a + b, a * b, torch.cat([a, a.to(b.dtype)]), torch.where(a > 0, a, b)]
    expected = [a + b, a * b, torch.cat([a, a.to(b.dtype)]), torch.where(a > 0, a, b)]
    assert not seen and all(torch.equal(r, e) and r.dtype is e.dtype for r, e in zip(results, expected))


def test_the_preferred_dtype_is_taken_where_there_is_one():
    x, w = operands((2, 5), (3, 5), dtypes=(FLOAT, BF16))
    with pytest.raises(RuntimeError):
        F.linear(x, w)
    with Reconcile(lambda dtypes: BF16, lambda mismatch: None):
        result = F.linear(x, w)
    assert result.dtype is BF16 and torch.equal(result, F.linear(x.bfloat16(), w))


def test_where_the_preferred_dtype_cannot_be_computed_in_the_promoted_one_is():
    """ "not implemented for 'Half'": what CPUs say under older versions of torch."""
    plain = F.linear

    def without_half(x, weight, bias=None):
        if x.dtype is weight.dtype is HALF:
            raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'")
        return plain(x, weight, bias)

    seen = []
    x, w = operands((2, 5), (3, 5), dtypes=(FLOAT, HALF))
    result = Reconcile(lambda dtypes: HALF, seen.append).__torch_function__(without_half, (), (x, w), {})
    assert result.dtype is FLOAT and torch.equal(result, plain(x, w.float()))
    assert [mismatch.target for mismatch in seen] == [FLOAT]


def test_a_storage_dtype_is_never_a_target_nor_an_operand():
    x = torch.randn(2, 4)
    stored = torch.randn(3, 4).to(torch.float8_e4m3fn)
    seen = []
    with promoting(seen), pytest.raises(RuntimeError):
        F.linear(x, stored)
    with Reconcile(lambda dtypes: torch.float8_e4m3fn, seen.append):
        assert F.linear(x, torch.randn(3, 4).half()).dtype is FLOAT
    assert [mismatch.target for mismatch in seen] == [FLOAT]


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("dtypes", [(HALF, FLOAT), (BF16, FLOAT), (FLOAT, BF16), (HALF, BF16)])
def test_what_is_written_in_place_is_computed_wide_and_rounded_once(name, dtypes):
    call, shapes = IN_PLACE[name]
    target, *others = operands(*shapes, dtypes=(dtypes[0], *[dtypes[1]] * len(shapes)))
    plain, wide = target.clone(), target.clone().float()
    with pytest.raises(RuntimeError), Watching() as watching:
        call(plain, *others)
    if not watching.errors:
        pytest.skip(f"torch {torch.__version__} hands this call to no function mode")
    call(wide, *[tensor.float() for tensor in others])
    assert not torch.equal(wide.to(target.dtype), plain), "the call writes nothing, so this proves nothing"
    pointer, seen = target.data_ptr(), []
    with promoting(seen):
        returned = call(target, *others)
    assert target.dtype is dtypes[0] and target.data_ptr() == pointer and torch.equal(target, wide.to(target.dtype))
    # A setter returns nothing, a list of targets is returned as one; what is written through a view is that view.
    for tensor in returned if isinstance(returned, (tuple, list)) else [returned] if returned is not None else []:
        assert tensor is target or tensor._base is target
    assert len(seen) == 1


def test_a_preferred_dtype_does_not_round_what_is_written_into():
    target, a, b = operands((2, 3), (2, 5), (5, 3), dtypes=(FLOAT, HALF, HALF))
    expected = torch.addmm(target, a.float(), b.float())
    with Reconcile(lambda dtypes: HALF, lambda mismatch: None):
        target.addmm_(a, b)
    assert torch.equal(target, expected)


def test_out_keeps_its_dtype():
    a, b = operands((2, 5), (5, 3), dtypes=(FLOAT, BF16))
    expected = torch.matmul(a, b.float()).bfloat16()
    for out in (torch.empty(2, 3, dtype=BF16), torch.empty(0, dtype=BF16)):
        with pytest.raises(RuntimeError):
            torch.matmul(a, b, out=out)
        with promoting():
            assert torch.matmul(a, b, out=out) is out
        assert out.dtype is BF16 and torch.equal(out, expected)


def test_every_tensor_of_an_out_is_written():
    values, places = torch.zeros(2, dtype=HALF), torch.zeros(2, dtype=torch.long)
    with pytest.raises(RuntimeError):
        torch.max(torch.tensor([[1.0, 3.0], [5.0, 2.0]]), 0, out=(values, places))
    with promoting():
        result = torch.max(torch.tensor([[1.0, 3.0], [5.0, 2.0]]), 0, out=(values, places))
    assert result.values is values and result.indices is places
    assert values.tolist() == [5, 3] and places.tolist() == [1, 0]


@pytest.mark.parametrize("options", [{"compute": FLOAT}, {"aborting": frozenset({"cpu"})}])
def test_what_is_aligned_ahead_of_the_call_keeps_its_target_too(options):
    a, b = operands((2, 5), (5, 3), dtypes=(HALF, FLOAT))
    expected = (a.float() @ b).half()
    out, target = torch.empty(2, 3, dtype=HALF), torch.zeros(2, 3, dtype=HALF)
    with promoting(**options):
        assert torch.matmul(a, b, out=out) is out
        assert target.addmm_(a, b) is target
    assert torch.equal(out, expected) and torch.equal(target, expected)


def test_a_gradient_is_assigned_in_its_tensors_dtype():
    x = torch.zeros(2, dtype=BF16, requires_grad=True)
    with pytest.raises(RuntimeError):
        x.grad = torch.ones(2)
    with promoting():
        x.grad = torch.ones(2)
    assert x.grad.dtype is BF16 and x.grad.tolist() == [1, 1]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_whose_parameters_differ_runs(name):
    make, call = MODULES[name]
    torch.manual_seed(0)
    module, x = make(), torch.randn(2, 3, 8)
    with torch.no_grad():
        expected = call(module, x)
        for parameter in list(module.parameters())[::2]:
            parameter.data = parameter.bfloat16()
        before = [(id(p), p.dtype, p._version) for p in module.parameters()]
        with pytest.raises(RuntimeError):
            call(module, x)
        with promoting():
            result = call(module, x)
    assert result.dtype is FLOAT and torch.allclose(result, expected, atol=0.05)
    assert [(id(p), p.dtype, p._version) for p in module.parameters()] == before


def test_gradients_flow_through_a_repeated_call():
    layer, x = nn.Linear(5, 3).bfloat16(), torch.randn(2, 5, requires_grad=True)
    with promoting():
        layer(x).sum().backward()
    assert x.grad.dtype is FLOAT and torch.equal(x.grad, layer.weight.float().sum(0).expand(2, 5))
    assert layer.weight.grad.dtype is BF16


def test_a_comparison_that_a_module_makes_itself_is_out_of_reach():
    """Stated in the docstring: newer recurrent layers compare dtypes in Python before they call anything of torch."""
    layer, x, seen = nn.LSTM(4, 5).bfloat16(), torch.randn(3, 2, 4), []
    with promoting(seen):
        try:
            result = layer(x)[0]
        except ValueError:
            assert not seen
        else:
            assert seen and result.dtype is FLOAT


@pytest.mark.parametrize("dtypes", [(FLOAT, FLOAT), (HALF, FLOAT)])
def test_an_error_of_another_kind_comes_out_as_it_was(dtypes):
    a, b = operands((2, 5), (4, 3), dtypes=dtypes)
    with pytest.raises(RuntimeError) as without:
        a @ b
    seen = []
    with promoting(seen), pytest.raises(RuntimeError) as with_it:
        a @ b
    assert str(with_it.value) == str(without.value) and not seen


def test_out_of_memory_passes_through_untouched():
    calls = []

    class Exhausted(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is not torch.matmul:
                return func(*args, **(kwargs or {}))
            calls.append(func)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    a, b = operands((2, 5), (5, 3), dtypes=(FLOAT, HALF))
    seen = []
    with Exhausted(), promoting(seen), pytest.raises(torch.cuda.OutOfMemoryError):
        torch.matmul(a, b)
    assert calls == [torch.matmul] and not seen


def test_without_repair_it_reports_and_the_call_fails():
    a, b = operands((2, 5), (5, 3), dtypes=(FLOAT, HALF))
    seen = []
    with promoting(seen, repair=False), pytest.raises(RuntimeError, match="dtype"):
        a @ b
    assert [mismatch.target for mismatch in seen] == [None]


def test_a_chosen_compute_dtype_holds_for_matrix_operations_and_changes_no_weight():
    layer = torch.nn.Linear(5, 3).half()
    x = torch.randn(2, 5).half()
    with promoting(compute=FLOAT):
        result = layer(x)
    assert result.dtype is FLOAT and layer.weight.dtype is HALF
    assert torch.equal(result, F.linear(x.float(), layer.weight.float(), layer.bias.float()))
    with promoting(compute=BF16):
        assert (x.float() @ layer.weight.t()).dtype is BF16


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in BESIDES_MATRICES])
def test_a_chosen_compute_dtype_holds_under_autocast_bit_for_bit(name):
    call, shapes = OPERATIONS[name]
    given_operands = operands(*shapes, dtypes=[FLOAT] * len(shapes))
    expected = call(*given_operands)
    with torch.autocast("cpu", BF16), promoting(compute=FLOAT):
        result = call(*given_operands)
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is FLOAT
    assert result.dtype is FLOAT and torch.equal(result, expected)


def test_autocast_would_cast_below_the_mode_and_goes_on_after_the_call():
    x, layer = torch.randn(2, 5), torch.nn.Linear(5, 3)
    with torch.autocast("cpu", BF16):
        with promoting():
            assert layer(x).dtype is BF16
        with promoting(compute=FLOAT):
            assert layer(x).dtype is FLOAT
        assert layer(x).dtype is BF16


def test_where_autocast_is_not_on_none_is_made(monkeypatch):
    monkeypatch.setattr(torch, "autocast", None)
    with promoting(compute=FLOAT):
        assert (torch.ones(2, 2).bfloat16() @ torch.ones(2, 2).bfloat16()).dtype is FLOAT
        meta = torch.ones(2, 2, device="meta")  # a device type that autocast does not know
        assert (meta @ meta).dtype is FLOAT


def test_on_a_device_that_aborts_dtypes_are_equal_before_the_call():
    """The CPU stands in for MPS: the mode asks only for the device's type."""
    arrived = []

    class Device(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func in MATRIX_OPERATIONS:
                arrived.append({a.dtype for a in args if isinstance(a, torch.Tensor)})
                if len(arrived[-1]) > 1:
                    raise SystemExit("the process would have been aborted here")
            return func(*args, **(kwargs or {}))

    a, b = operands((2, 5), (5, 3), dtypes=(HALF, FLOAT))
    with Device(), promoting(), pytest.raises(SystemExit):
        torch.matmul(a, b)
    seen = []
    with Device(), promoting(seen, aborting=frozenset({"cpu"})):
        assert torch.matmul(a, b).dtype is FLOAT
    assert arrived[-1] == {FLOAT} and seen[0].error == ""


def test_what_would_abort_and_is_not_to_be_repaired_is_told_before_it_is_called():
    told = []

    class Aborting(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func in MATRIX_OPERATIONS:
                raise SystemExit(f"aborted, {len(told)} told")
            return func(*args, **(kwargs or {}))

    a, b = operands((2, 5), (5, 3), dtypes=(HALF, FLOAT))
    warning = Reconcile(lambda dtypes: None, told.append, repair=False, aborting=frozenset({"cpu"}))
    with Aborting(), warning, pytest.raises(SystemExit, match="1 told"):
        torch.matmul(a, b)
    assert told[0].target is None


def test_the_devices_that_abort_are_looked_up_when_the_mode_is_made(monkeypatch):
    monkeypatch.setattr(reconcile, "ABORTING_DEVICES", frozenset({"cpu"}))
    seen = []
    with promoting(seen):
        F.linear(input=torch.ones(2, 5), weight=torch.ones(3, 5).bfloat16())
    assert [(mismatch.operation, mismatch.error) for mismatch in seen] == [("linear", "")]
    seen.clear()
    with promoting(seen, aborting=frozenset()):
        torch.ones(2, 5) @ torch.ones(5, 3).bfloat16()
    assert len(seen) == 1 and seen[0].error


def test_what_fails_after_it_was_aligned_is_not_reported():
    seen = []
    with promoting(seen, aborting=frozenset({"cpu"})), pytest.raises(RuntimeError, match="shapes"):
        torch.ones(2, 5) @ torch.ones(4, 3).bfloat16()
    assert not seen


def test_under_autocast_unequal_dtypes_are_healthy_on_every_device():
    a, b = operands((2, 5), (5, 3), dtypes=(BF16, FLOAT))
    seen = []
    with torch.autocast("cpu", BF16):
        expected = a @ b
        with promoting(seen, aborting=frozenset({"cpu"})):
            result = a @ b
    assert not seen and result.dtype is BF16 and torch.equal(result, expected)


def test_a_quantized_subclass_unpacks_itself():
    class Packed(torch.Tensor):
        pass

    packed = torch.randn(3, 5).half().as_subclass(Packed)
    seen = []
    with promoting(seen), pytest.raises(RuntimeError):
        F.linear(torch.randn(2, 5), packed)
    with promoting(seen, compute=BF16), pytest.raises(RuntimeError):
        F.linear(torch.randn(2, 5), packed)
    assert not seen


def test_left_or_inert_it_does_nothing():
    a, b = operands((2, 5), (5, 3), dtypes=(HALF, FLOAT))
    mode = promoting()
    mode.enter()
    mode.leave()
    with pytest.raises(RuntimeError):
        a @ b
    with promoting() as outer:
        outer.inert = True
        with pytest.raises(RuntimeError):
            a @ b


def test_leaving_out_of_order_does_not_take_away_a_foreign_mode():
    class Foreign(torch.overrides.TorchFunctionMode):
        pass

    mode = promoting()
    mode.enter()
    with Foreign() as foreign:
        mode.leave()
        assert torch.overrides._get_current_function_mode() is foreign
    assert torch.overrides._get_current_function_mode() is mode and mode.inert
    mode.leave()
    assert torch.overrides._get_current_function_mode() is None


# A dtype that the device has no kernel for.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "operation",
    [
        lambda x: torch.cdist(x, x),
        lambda x: torch.linalg.svd(x, full_matrices=False),
        lambda x: torch.linalg.inv(x),
        lambda x: torch.fft.fft(x),
    ],
    ids=["cdist", "svd", "inv", "fft"],
)
def test_an_operation_without_a_kernel_for_the_dtype_is_computed_in_float32(operation, dtype):
    torch.manual_seed(0)
    x = torch.randn(4, 4).to(dtype)
    with pytest.raises(RuntimeError):
        operation(x)
    seen: list[Mismatch] = []
    with Reconcile(lambda dtypes: None, seen.append):
        result = operation(x)
    wide = operation(x.float())
    pairs = list(zip(result, wide)) if isinstance(wide, tuple) else [(result, wide)]
    assert all(torch.equal(one, other.to(one.dtype)) for one, other in pairs)
    assert all(one.dtype in (dtype, torch.complex64) for one, _ in pairs)
    assert [(one.dtypes[0], one.target) for one in seen] == [(dtype, torch.float32)]


def test_a_missing_kernel_is_only_told_where_nothing_is_to_be_repaired():
    seen: list[Mismatch] = []
    x = torch.ones(2, 2, dtype=torch.float16)
    with Reconcile(lambda dtypes: None, seen.append, repair=False), pytest.raises(RuntimeError):
        torch.cdist(x, x)
    assert [one.target for one in seen] == [None]

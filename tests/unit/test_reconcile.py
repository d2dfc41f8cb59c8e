"""The mode that aligns an operation's operands: only where a call raises, and with no other effect."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lib_guard.tensors.reconcile import MATRIX_OPERATIONS, Mismatch, Reconcile

HALF, BF16, FLOAT = torch.float16, torch.bfloat16, torch.float32
DTYPES = (HALF, BF16, FLOAT)


def promoting(seen: list[Mismatch] | None = None, **options) -> Reconcile:
    return Reconcile(lambda dtypes: None, (seen if seen is not None else []).append, **options)


def operands(*shapes, dtypes):
    torch.manual_seed(0)
    return [torch.randn(shape).to(dtype) for shape, dtype in zip(shapes, dtypes)]


OPERATIONS = {
    "conv2d": (F.conv2d, [(1, 3, 6, 6), (4, 3, 3, 3), (4,)]),
    "conv_transpose2d": (F.conv_transpose2d, [(1, 3, 6, 6), (3, 4, 3, 3), (4,)]),
    "linear": (F.linear, [(2, 5), (3, 5), (3,)]),
    "matmul": (torch.matmul, [(2, 5), (5, 3)]),
    "operator": (lambda a, b: a @ b, [(2, 5), (5, 3)]),
    "bmm": (torch.bmm, [(2, 3, 4), (2, 4, 5)]),
    "baddbmm": (torch.baddbmm, [(2, 3, 5), (2, 3, 4), (2, 4, 5)]),
    "einsum": (lambda a, b: torch.einsum("ij,jk->ik", a, b), [(2, 5), (5, 3)]),
    "attention": (F.scaled_dot_product_attention, [(1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8)]),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (8,), w, b), [(2, 8), (8,), (8,)]),
    "group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b), [(2, 8, 3), (8,), (8,)]),
}


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
    expected, seen = call(*given_operands), []
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


def test_an_in_place_call_keeps_its_target():
    target, index, value = torch.zeros(4, dtype=HALF), (torch.tensor([1, 2]),), torch.ones(2)
    with pytest.raises(RuntimeError, match="Index put requires"):
        target.index_put_(index, value)
    with promoting():
        returned = target.index_put_(index, value)
    assert returned is target and target.dtype is HALF and target.tolist() == [0, 1, 1, 0]


def test_out_keeps_its_dtype():
    a, b = operands((2, 5), (5, 3), dtypes=(FLOAT, BF16))
    out = torch.empty(2, 3, dtype=BF16)
    with pytest.raises(RuntimeError):
        torch.matmul(a, b, out=out)
    with promoting():
        assert torch.matmul(a, b, out=out) is out
    assert torch.equal(out, torch.matmul(a.bfloat16(), b))


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


def test_a_quantized_subclass_unpacks_itself():
    class Packed(torch.Tensor):
        pass

    packed = torch.randn(3, 5).half().as_subclass(Packed)
    seen = []
    with promoting(seen), pytest.raises(RuntimeError):
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

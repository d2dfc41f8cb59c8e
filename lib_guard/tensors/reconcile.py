"""Operation-level dtype reconciliation.

A cast at the door of a module cannot cure a layer that casts *inside* (AUTOMATIC1111's functional LoRA path does,
extensions-builtin/Lora/networks.py:554), nor one module with a float16 weight and a float32 bias. The only place
that sees every operand is the operation itself, so that is where `Reconcile` works.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from .dtypes import COMPUTE_DTYPES, is_compute, promoted

#: Operations between activations and weights. They never promote by themselves, so these are the calls that devices
#: which abort instead of raising (MPS) must not be given unequal dtypes, and the ones that fix a compute precision.
MATRIX_OPERATIONS: frozenset[Any] = frozenset(
    {
        *(F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
        *(F.linear, F.bilinear, F.scaled_dot_product_attention, F.multi_head_attention_forward),
        *(F.group_norm, F.layer_norm, F.batch_norm, F.instance_norm),
        *(torch.conv1d, torch.conv2d, torch.conv3d, torch.group_norm, torch.layer_norm),
        *(torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum),
        *(torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.mm, torch.Tensor.bmm),
        *(torch.Tensor.addmm, torch.Tensor.baddbmm),
    }
)

#: Device types on which unequal dtypes end the process instead of raising.
ABORTING_DEVICES = frozenset({"mps"})

_PLAIN_TENSORS = tuple(
    kind for kind in (torch.Tensor, torch.nn.Parameter, getattr(torch.nn, "Buffer", None)) if kind is not None
)


@dataclass(frozen=True)
class Mismatch:
    """One operation whose floating operands differed in dtype.

    operation: the function's name (`conv2d`). operands: the floating tensors as they came, in order of the call; held
    only while the mismatch is reported. target: the dtype it was computed in, None when it was left to fail.
    error: the library's own text, empty when the dtypes were compared before the call. seconds: the extra time.
    """

    operation: str
    operands: tuple[torch.Tensor, ...]
    target: torch.dtype | None
    error: str
    seconds: float

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """The operands' dtypes in order of the call."""
        return tuple(tensor.dtype for tensor in self.operands)


class Reconcile(TorchFunctionMode):
    """Passes every call through; when one raises because floating operands differ in dtype, casts them and repeats it.

    It changes no weight and no attribute, and lives in the thread that entered it. A call that does not raise is not
    touched at all, so outside a mismatch not a bit changes. Errors with equal dtypes, out-of-memory errors and calls
    on tensor subclasses (quantized weights unpack themselves) come out as they were raised.

    prefer: given the operands' dtypes, the dtype to compute in; None for the promoted one, which loses nothing.
    In-place calls and `out=` keep their target's dtype, because the caller holds that very tensor.
    report: called with every `Mismatch`; what it returns is ignored.
    repair: False leaves the failing call to fail, after reporting it.
    compute: when given, `MATRIX_OPERATIONS` run in this dtype whatever their operands are (not reported: it was asked
    for, nothing was wrong).
    aborting: device types whose operands are compared before the call.
    """

    def __init__(
        self,
        prefer: Callable[[tuple[torch.dtype, ...]], torch.dtype | None],
        report: Callable[[Mismatch], None],
        *,
        repair: bool = True,
        compute: torch.dtype | None = None,
        aborting: frozenset[str] = ABORTING_DEVICES,
    ) -> None:
        super().__init__()
        self._prefer = prefer
        self._report = report
        self._repair = repair
        self._compute = compute
        self._aborting = aborting
        #: Set when the boundary was left without leaving the mode (an interrupt that is no Exception): then it must
        #: not act on whatever the thread does next.
        self.inert = False

    def enter(self) -> None:
        """Act on this thread's calls from here on."""
        self.__enter__()  # type: ignore[no-untyped-call]

    def leave(self) -> None:
        """Act no more. Only the innermost mode can be taken off the thread; under one that somebody else has not left
        yet, being inert must do."""
        self.inert = True
        if _get_current_function_mode() is self:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.inert:
            return func(*args, **kwargs)
        if func in MATRIX_OPERATIONS:
            args, kwargs = self._before(func, args, kwargs)
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:
            if _is_out_of_memory(error):
                raise
            return self._repeat(func, args, kwargs, error)

    def _before(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Align the operands ahead of a call: for a chosen compute dtype, or on a device that would abort."""
        if self._compute is not None:
            return _cast(args, self._compute), _cast(kwargs, self._compute)
        first = next(_tensors(args), None)
        if not self._repair or first is None or first.device.type not in self._aborting:
            return args, kwargs
        operands = tuple(_floating(args, kwargs))
        if not _differ(operands):
            return args, kwargs
        started = time.perf_counter()
        target = self._targets(func, args, kwargs, operands)[0]
        aligned = _cast(args, target), _cast(kwargs, target)
        self._report(Mismatch(func.__name__, operands, target, "", time.perf_counter() - started))
        return aligned

    def _repeat(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], error: RuntimeError) -> Any:
        """Repeat a call that raised, with operands of one dtype; raise `error` where dtypes were not the reason."""
        operands = tuple(_floating(args, kwargs))
        if not _differ(operands):
            raise error
        name = getattr(func, "__name__", str(func))
        if not self._repair:
            self._report(Mismatch(name, operands, None, str(error), 0.0))
            raise error
        started = time.perf_counter()
        for target in self._targets(func, args, kwargs, operands):
            try:
                result = func(*_cast(args, target), **_cast(kwargs, target))
            except RuntimeError as second:
                if _is_out_of_memory(second):
                    raise
                continue
            self._report(Mismatch(name, operands, target, str(error), time.perf_counter() - started))
            return result
        # Shapes or devices were wrong as well: the first error is the one that the host would have shown.
        raise error

    def _targets(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], operands: tuple[torch.Tensor, ...]
    ) -> list[torch.dtype]:
        """The dtypes to try, in that order: the written tensor's and no other; else the preferred one, and the promoted
        one for a device that cannot compute in that ("not implemented for 'Half'" on many a CPU)."""
        written = _written(func, args, kwargs)
        if written is not None and is_compute(written):
            return [written.dtype]
        dtypes = tuple(tensor.dtype for tensor in operands)
        preferred, widest = self._prefer(dtypes), promoted(dtypes)
        return [preferred, widest] if preferred in COMPUTE_DTYPES and preferred is not widest else [widest]


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """The tensor that the call writes into (`out=`, `add_`, `inplace=True`), which must stay the very same object."""
    out = kwargs.get("out")
    if isinstance(out, torch.Tensor):
        return out
    name = getattr(func, "__name__", "")
    in_place = (name.endswith("_") and not name.endswith("__")) or name.startswith("__i") or name == "__setitem__"
    if (in_place or kwargs.get("inplace") is True) and args and isinstance(args[0], torch.Tensor):
        return args[0]
    return None


def _floating(*values: Any) -> Iterator[torch.Tensor]:
    """The plain tensors of a compute dtype in a call's arguments, in order; nothing when a subclass is among them."""
    found = list(_tensors(values))
    if all(type(tensor) in _PLAIN_TENSORS for tensor in found):
        yield from (tensor for tensor in found if is_compute(tensor))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


def _differ(operands: tuple[torch.Tensor, ...]) -> bool:
    return len({tensor.dtype for tensor in operands}) > 1


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """The same arguments with every plain floating tensor in `dtype`; containers are rebuilt, never changed.

    A tensor that already has the dtype stays the same object, and so does the target of an in-place call.
    """
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if type(value) in _PLAIN_TENSORS and is_compute(value) else value
    if isinstance(value, list):
        return [_cast(item, dtype) for item in value]
    if isinstance(value, tuple):
        items = [_cast(item, dtype) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, dict):
        return {key: _cast(item, dtype) for key, item in value.items()}
    return value


def _is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA has a class for it; MPS and DirectML only a text."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error).lower()

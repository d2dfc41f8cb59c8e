"""Operation-level dtype reconciliation.

A cast at the door of a module cannot cure a layer that casts *inside* (AUTOMATIC1111's functional LoRA path does,
extensions-builtin/Lora/networks.py:554), nor one module with a float16 weight and a float32 bias. The only place
that sees every operand is the operation itself, so that is where `Reconcile` works.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from .dtypes import COMPUTE_DTYPES, is_compute, promoted
from .layers import PLAIN_TENSORS

#: Operations between activations and weights. They never promote by themselves, so these are the calls that devices
#: which abort instead of raising (MPS) must not be given unequal dtypes, and the ones that fix a compute precision.
MATRIX_OPERATIONS: frozenset[Any] = frozenset(
    {
        *(F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
        *(F.linear, F.bilinear, F.scaled_dot_product_attention, F.multi_head_attention_forward),
        *(F.group_norm, F.layer_norm, F.batch_norm, F.instance_norm),
        *(torch.conv1d, torch.conv2d, torch.conv3d, torch.convolution),
        *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
        *(torch.group_norm, torch.layer_norm, torch.batch_norm, torch.instance_norm, torch.bilinear),
        *(torch.einsum, torch.tensordot, torch.chain_matmul, torch.linalg.multi_dot, torch.linalg.matmul),
        *(torch.Tensor.__matmul__, torch.Tensor.__rmatmul__),
        *(
            getattr(home, name)
            for home in (torch, torch.Tensor)
            for name in ("matmul", "mm", "bmm", "mv", "dot", "vdot", "inner", "addmm", "addmv", "addbmm", "baddbmm")
        ),
        *(torch.Tensor.addmm_, torch.Tensor.addmv_, torch.Tensor.addbmm_, torch.Tensor.baddbmm_),
        # Since torch 2.4.
        *(home.rms_norm for home in (F, torch) if hasattr(home, "rms_norm")),
    }
)

#: Device types on which unequal dtypes end the process instead of raising.
ABORTING_DEVICES = frozenset({"mps"})

#: In-place operations that only put values into their target: cast to its dtype these are rounded once, as the target
#: would round them anyway. All others compute with what the target holds.
_PLACING = frozenset({"__setitem__", "__set__", "index_copy_", "masked_scatter_"})


@dataclass(frozen=True)
class Mismatch:
    """One operation whose floating operands differed in dtype, or whose one dtype the device cannot compute it in.

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
    When one raises because the device has no kernel for their one dtype ("not implemented for 'Half'"), it is computed
    in float32, and the result is in the dtype that it would have had.

    It changes no weight and no attribute, and lives in the thread that entered it. A call that does not raise is not
    touched at all, so outside a mismatch not a bit changes. Errors with equal dtypes, out-of-memory errors and calls
    on tensor subclasses (quantized weights unpack themselves) come out as they were raised.

    What cannot be seen here stays as it is: dtypes that a module or a library compares in Python before its operation
    (`nn.LSTM`, xformers), operations of scripted modules, what a backward pass computes again, and in torch 2.1
    `x[index] = y` for one tensor as index. A batch norm in training mode whose running statistics had to be cast does
    not update them.

    prefer: given the operands' dtypes, the dtype to compute in; None for the promoted one, which loses nothing.
    In-place calls and `out=` keep their target, because the caller holds that very tensor: what is computed is rounded
    into it, and no dtype that cannot hold what it holds is preferred.
    report: called with every `Mismatch`; what it returns is ignored.
    repair: False leaves the failing call to fail, after reporting it.
    compute: when given, `MATRIX_OPERATIONS` run in this dtype whatever their operands are and whatever autocast would
    choose (not reported: it was asked for, nothing was wrong).
    aborting: device types whose operands are compared before the call; None for `ABORTING_DEVICES`.
    """

    def __init__(
        self,
        prefer: Callable[[tuple[torch.dtype, ...]], torch.dtype | None],
        report: Callable[[Mismatch], None],
        *,
        repair: bool = True,
        compute: torch.dtype | None = None,
        aborting: frozenset[str] | None = None,
    ) -> None:
        super().__init__()
        self._prefer = prefer
        self._report = report
        self._repair = repair
        self._compute = compute
        self._aborting = ABORTING_DEVICES if aborting is None else aborting
        #: Set when the boundary was left without leaving the mode (an interrupt that is no Exception): then it must
        #: not act on whatever the thread does next.
        self.inert = False

    def enter(self) -> None:
        """Act on this thread's calls from here on."""
        self.__enter__()  # type: ignore[no-untyped-call]

    def leave(self) -> None:
        """Act no more. Only the innermost mode can be taken off the thread; under one that somebody else has not left
        yet, being inert must do, until that one is left."""
        self.inert = True
        while isinstance(innermost := _get_current_function_mode(), Reconcile) and innermost.inert:
            innermost.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.inert:
            return func(*args, **kwargs)
        if func in MATRIX_OPERATIONS:
            call = _Call(func, args, kwargs)
            if self._compute is not None and (operands := call.operands()):
                with _without_autocast(operands[0].device.type):
                    return call.run_in(self._compute)
            if self._would_abort(call):
                return self._align(call)
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            return self._repeat(_Call(func, args, kwargs), error)

    def _would_abort(self, call: _Call) -> bool:
        """Whether the call has unequal dtypes on a device that ends the process for them. Under autocast they are
        healthy there too."""
        first = next(_tensors((call.args, call.kwargs)), None)
        if first is None or first.device.type not in self._aborting:
            return False
        return _differ(call.operands()) and not _autocast_is_on(first.device.type)

    def _align(self, call: _Call) -> Any:
        """Make the call with operands of one dtype, without having tried it as it is. What is not to be repaired is
        told beforehand: afterwards nobody is there to tell it."""
        operands, started = call.operands(), time.perf_counter()
        if not self._repair:
            self._report(Mismatch(call.name, operands, None, "", 0.0))
            return call.func(*call.args, **call.kwargs)
        target = self._targets(call, operands)[0]
        aligned = call.aligned(target)
        seconds = time.perf_counter() - started
        result = call.run_as(aligned)
        self._report(Mismatch(call.name, operands, target, "", seconds))
        return result

    def _repeat(self, call: _Call, error: RuntimeError) -> Any:
        """Repeat a call that raised, with operands of one dtype; raise `error` where dtypes were not the reason."""
        operands = call.operands()
        if not _differ(operands) and not _lacks_kernel(error, operands):
            raise error
        if not self._repair:
            self._report(Mismatch(call.name, operands, None, str(error), 0.0))
            raise error
        started = time.perf_counter()
        for target in self._targets(call, operands):
            try:
                result = call.run_in(target) if _differ(operands) else call.run_through(target, operands[0].dtype)
            except RuntimeError as second:
                if is_out_of_memory(second):
                    raise
                continue
            self._report(Mismatch(call.name, operands, target, str(error), time.perf_counter() - started))
            return result
        # Shapes or devices were wrong as well: the first error is the one that the host would have shown.
        raise error

    def _targets(self, call: _Call, operands: tuple[torch.Tensor, ...]) -> list[torch.dtype]:
        """The dtypes to try, in that order: the preferred one, and the promoted one for a device that cannot compute in
        that ("not implemented for 'Half'" on many a CPU)."""
        written = {tensor.dtype for tensor in call.written()}
        if written and call.name in _PLACING:
            return list(written)
        dtypes = tuple(tensor.dtype for tensor in operands)
        if not _differ(operands):
            return [torch.float32]
        preferred, widest = self._prefer(dtypes), promoted(dtypes)
        if preferred is None or preferred not in COMPUTE_DTYPES or promoted({preferred, *written}) is not preferred:
            return [widest]
        return list(dict.fromkeys((preferred, widest)))


class _Call(NamedTuple):
    """A function with the arguments that it is called with."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        """`index_put_`, also for `torch.ops.aten.index_put_.default`."""
        return str(getattr(self.func, "__name__", self.func)).partition(".")[0]

    def operands(self) -> tuple[torch.Tensor, ...]:
        """The plain tensors of a compute dtype, in order; none when a subclass is among the arguments."""
        found = list(_tensors((self.args, self.kwargs)))
        return tuple(_plain(found)) if all(type(tensor) in PLAIN_TENSORS for tensor in found) else ()

    def written(self) -> tuple[torch.Tensor, ...]:
        """The plain tensors of a compute dtype that the call writes into (`out=`, `add_`, `inplace=True`)."""
        if (out := self.kwargs.get("out")) is not None:
            return tuple(_plain(_tensors(out)))
        name = self.name
        in_place = (name.endswith("_") and not name.endswith("__")) or name in _PLACING or name.startswith("__i")
        if not in_place and self.kwargs.get("inplace") is not True:
            return ()
        target = self.args[0] if self.args else self.kwargs.get("input", self.kwargs.get("self"))
        return tuple(_plain(_tensors(target)))

    def aligned(self, dtype: torch.dtype) -> _Call:
        """The same call with its operands, written ones too, in `dtype`."""
        return _Call(self.func, _cast(self.args, dtype), _cast(self.kwargs, dtype))

    def run_in(self, dtype: torch.dtype) -> Any:
        """Run it with operands in `dtype`. Raises what the function raises."""
        return self.run_as(self.aligned(dtype))

    def run_through(self, dtype: torch.dtype, own: torch.dtype) -> Any:
        """Run it with operands in `dtype`, and have the result in their `own`, unless the call names a dtype."""
        result = self.run_in(dtype)
        named = any(isinstance(value, torch.dtype) for value in (*self.args, *self.kwargs.values()))
        return result if named else _narrowed(result, dtype, own)

    def run_as(self, aligned: _Call) -> Any:
        """Run it as its aligned form. What that writes is rounded into the tensors that this one was given, and these
        are what is returned, because the caller may hold either."""
        result = aligned.func(*aligned.args, **aligned.kwargs)
        pairs = [(own, copy) for own, copy in zip(self.written(), aligned.written()) if own is not copy]
        for own, copy in pairs:
            if own.shape != copy.shape:  # `out=torch.empty(0)`
                own.resize_(copy.shape)
            own.copy_(copy)
        return _exchange(result, {id(copy): own for own, copy in pairs}) if pairs else result


def _plain(tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    return (tensor for tensor in tensors if type(tensor) in PLAIN_TENSORS and is_compute(tensor))


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

    A tensor that already has the dtype stays the same object.
    """
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if type(value) in PLAIN_TENSORS and is_compute(value) else value
    if isinstance(value, (tuple, list)):
        return _rebuilt(value, [_cast(item, dtype) for item in value])
    if isinstance(value, dict):
        return {key: _cast(item, dtype) for key, item in value.items()}
    return value


def _narrowed(value: Any, dtype: torch.dtype, own: torch.dtype) -> Any:
    """A result with its tensors of `dtype` in `own`."""
    if isinstance(value, torch.Tensor):
        return value.to(own) if value.dtype is dtype else value
    if isinstance(value, (tuple, list)):
        return _rebuilt(value, [_narrowed(item, dtype, own) for item in value])
    return value


def _exchange(value: Any, tensors: dict[int, torch.Tensor]) -> Any:
    """A result with the tensors of these identities replaced."""
    if isinstance(value, torch.Tensor):
        return tensors.get(id(value), value)
    if isinstance(value, (tuple, list)):
        return _rebuilt(value, [_exchange(item, tensors) for item in value])
    return value


def _rebuilt(value: tuple[Any, ...] | list[Any], items: list[Any]) -> Any:
    """A sequence of the given one's kind; a subclass of list or tuple that has no fields becomes a plain one."""
    if isinstance(value, list):
        return items
    if hasattr(value, "_fields"):
        return type(value)(*items)
    # `torch.return_types`: what `torch.max(x, 0)` returns.
    return type(value)(items) if hasattr(value, "n_fields") else tuple(items)


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Autocast off for a device type; nothing where it is not on."""
    return torch.autocast(device_type, enabled=False) if _autocast_is_on(device_type) else nullcontext()


def _autocast_is_on(device_type: str) -> bool:
    if hasattr(torch, "get_autocast_dtype"):  # since torch 2.4 all device types are asked about in one way
        return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    if device_type == "cpu":
        return torch.is_autocast_cpu_enabled()
    return device_type == "cuda" and torch.is_autocast_enabled()


def _lacks_kernel(error: RuntimeError, operands: tuple[torch.Tensor, ...]) -> bool:
    """Whether a device cannot compute an operation in its operands' one dtype. torch has a text for it and no class:
    the dispatch macros raise NotImplementedError in new versions, RuntimeError in old ones (ATen/Dispatch.h)."""
    names = {torch.float16: "Half", torch.bfloat16: "BFloat16"}
    name = names.get(operands[0].dtype) if operands else None
    pattern = rf"not implemented for '?{name}\b|Unsupported dtype {name}\b|dtypes not supported\. Got {name}\b"
    return name is not None and re.search(pattern, str(error)) is not None


def is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA has a class for it; MPS and DirectML only a text."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error).lower()

"""What a component is made of, as far as it matters to whoever works on the operations inside it."""

from __future__ import annotations

import torch

from .dtypes import COMPUTE_DTYPES

#: What a plain weight is. Anything else is a subclass that unpacks itself (bitsandbytes, GGUF, quanto, torchao).
PLAIN_TENSORS = tuple(
    kind for kind in (torch.Tensor, torch.nn.Parameter, getattr(torch.nn, "Buffer", None)) if kind is not None
)


def is_compiled(component: torch.nn.Module) -> bool:
    """Whether a component, or any layer of it, is compiled or scripted: a mode inside would break or recompile it."""
    return any(is_compiled_itself(module) for module in component.modules())


def is_compiled_itself(module: torch.nn.Module) -> bool:
    """Whether this very module is, whatever is in it."""
    scripted = isinstance(module, torch.jit.ScriptModule)
    return scripted or hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def is_quantized(component: torch.nn.Module) -> bool:
    """Whether any weight is stored in another kind of dtype than it is computed in (float8, int8, packed 4-bit).

    Told by the weights, not by names: layers of bitsandbytes, GGUF, quanto, torchao and SDNQ differ in all else.
    Integer *buffers* say nothing; a CLIP's position ids are such.
    """
    weights = (parameter for parameter in component.parameters())
    return any(type(one) not in PLAIN_TENSORS or one.dtype not in COMPUTE_DTYPES for one in weights)


def has_fast_path(component: torch.nn.Module) -> bool:
    """Whether a layer takes another way, with other rounding, while any mode is active.

    `torch.nn.MultiheadAttention` does in inference when its batch comes first (torch/nn/modules/activation.py,
    `why_not_fast_path`), and with it `TransformerEncoderLayer`.
    """
    kinds = (torch.nn.MultiheadAttention, torch.nn.TransformerEncoderLayer)
    return any(isinstance(one, kinds) and getattr(one, "batch_first", True) for one in component.modules())

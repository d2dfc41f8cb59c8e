"""Which tensors of a component are the model's own, and where they hang.

Adapters that are layers of their own (PEFT) put themselves between a layer and its name: `to_q` becomes a wrapper,
`to_q.base_layer` the layer, and `to_q.lora_A` comes beside it (peft tuners/tuners_utils.py). Here the layer keeps its
name and what came beside it is left out, so that a component has the same names with and without adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import torch
from torch import nn

#: Under these names wrappers hold what they wrap: PEFT's tuners, PEFT's ModulesToSaveWrapper, torch.compile.
_WRAPPED = ("base_layer", "original_module", "_orig_mod")


@dataclass(frozen=True)
class Slot:
    """Where a weight hangs. module, name: the attribute. parameter: whether it is one, and not a buffer."""

    module: nn.Module
    name: str
    parameter: bool

    @property
    def tensor(self) -> torch.Tensor | None:
        """What hangs there now."""
        held = (self.module._parameters if self.parameter else self.module._buffers).get(self.name)
        return held if isinstance(held, torch.Tensor) else None


def slots_of(component: nn.Module) -> dict[str, Slot]:
    """The places of all parameters and buffers of the model itself, by name; a module that is held in several places is
    named by the first. Places that are empty are among them."""
    return {
        f"{path}.{name}" if path else name: slot
        for path, module in _modules(component, "", set())
        for name, slot in chain(
            ((name, Slot(module, name, True)) for name in module._parameters),
            ((name, Slot(module, name, False)) for name in module._buffers),
        )
    }


def weights_of(component: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers of the model itself, by name. Nothing is copied."""
    return {name: slot.tensor for name, slot in slots_of(component).items() if slot.tensor is not None}


def layers(names: Mapping[str, object] | list[str]) -> set[str]:
    """The layers that weights belong to, by the weights' names."""
    return {name.rpartition(".")[0] for name in names}


def live_adapters(component: nn.Module) -> dict[str, list[str]]:
    """The PEFT adapters that act in a component, each with the names of its layers. Merged ones are in the weights, and
    disabled ones do nothing."""
    found: dict[str, list[str]] = {}
    for path, module in component.named_modules():
        if "base_layer" not in module._modules or getattr(module, "disable_adapters", False):
            continue
        merged = set(getattr(module, "merged_adapters", ()))
        held = set(
            chain.from_iterable(getattr(module, name, ()) for name in getattr(module, "adapter_layer_names", ()))
        )
        for adapter in getattr(module, "active_adapters", ()):
            if adapter in held and adapter not in merged:
                found.setdefault(adapter, []).append(path.replace(".base_layer", ""))
    return found


def _modules(module: nn.Module, path: str, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    wrapped = next((module._modules[name] for name in _WRAPPED if module._modules.get(name) is not None), None)
    if wrapped is not None:
        yield from _modules(wrapped, path, seen)
        return
    if id(module) in seen:
        return
    seen.add(id(module))
    yield path, module
    for name, child in module._modules.items():
        if child is not None:
            yield from _modules(child, f"{path}.{name}" if path else name, seen)

"""Which family the loaded model is of, by the names and shapes of its layers alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn
from torch.nn.parameter import is_lazy

from ..files.families import Verdict
from ..files.families.core import core_of
from ..files.families.layers import Layer, Part
from ..files.families.verdict import CHECKPOINT, verdict
from ..files.header import TensorEntry
from ..hosts.lora_handling import Place
from ..tensors.weights import Slot, slots_of

#: How the components of a model are called that encode text, in every host.
_TEXT = "text_encoder"


def family_of_live(places: Sequence[Place]) -> Verdict:
    """What the loaded model is. No weight is read: it may be on another device, packed, or not there at the moment."""
    return verdict(CHECKPOINT, core_of(sampling_layers(places)).settled)


def sampling_layers(places: Sequence[Place]) -> list[Layer]:
    """The layers of what samples: UNet or transformer, and not the text encoders."""
    return [layer for place in places if not place.component.startswith(_TEXT) for layer in _layers_of(place.owner)]


def _layers_of(owner: nn.Module) -> Iterator[Layer]:
    """Each layer as a LoRA's that changes all of it, since that is what the rules look at."""
    for name, slot in slots_of(owner).items():
        shape = _shape(slot) if slot.name == "weight" else ()
        if len(shape) > 1:
            path = name.rpartition(".")[0]
            part = Part(name, TensorEntry("F32", shape, 0, 0))
            yield Layer(path, path.replace(".", "_"), "full difference", {"diff": part})


def _shape(slot: Slot) -> tuple[int, ...]:
    """As the layer computes with it. Quantized weights are packed or turned, but their layers know how wide they are;
    what is packed in a layer that does not know tells nothing."""
    into, out = getattr(slot.module, "in_features", None), getattr(slot.module, "out_features", None)
    if type(into) is int and type(out) is int:
        return out, into
    tensor = slot.tensor
    if tensor is None or not tensor.is_floating_point() or is_lazy(tensor):
        return ()
    return tuple(tensor.shape)

"""How diffusers' own loader puts LoRAs into a pipeline, as the embedded host uses it.

Of diffusers 0.36 to 0.42 this relies on:
  pipe.load_lora_weights, set_adapters  adapters as layers beside the weights (loaders/lora_pipeline.py)
  pipe.fuse_lora, unfuse_lora           add their product to the weights, and subtract it (peft lora/layer.py merge,
                                        unmerge): in a 16-bit dtype that leaves a residue
  pipe.unload_lora_weights              takes the layers out, and what is merged it forgets (loaders/lora_base.py)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..tensors.weights import live_adapters
from .base import VaeBoundary
from .diffusers import pipeline_boundaries
from .lora_handling import Asked, LoraUse, Place, Reach

_FUSED = "fused"


class DiffusersLoraHandling:
    """See the module's docstring and `LoraHandling`."""

    eager = True

    def activation(self) -> tuple[object, str] | None:
        """See `LoraHandling`."""
        from modules import extra_networks

        network = extra_networks.extra_network_registry.get("lora")
        return (network, "activate") if network is not None else None

    def places(self) -> Sequence[Place]:
        """See `LoraHandling`."""
        pipe = _pipe()
        called = [one for one in pipeline_boundaries(pipe) if not isinstance(one, VaeBoundary)]
        takes = [one for one in called if one.component in getattr(pipe, "_lora_loadable_modules", ())]
        return [places_of(one.component, one.owner, str(pipe.sd_model_checkpoint)) for one in takes]

    def asked(self, request: Any, params: Sequence[Any] | None, **options: Any) -> Asked:
        """See `LoraHandling`."""
        from modules import extra_networks_lora, paths, shared

        files = paths.files("Lora", ".safetensors")
        pairs = [extra_networks_lora.name_and_weight(one) for one in params or ()]
        uses = tuple(LoraUse.of(name, files.get(name), (weight,)) for name, weight in pairs)
        return Asked(uses, (str(shared.opts.lora_method),))

    def settle(self, asked: Asked) -> None:
        """See `LoraHandling`."""
        from modules import extra_networks_lora

        extra_networks_lora.take_out(_pipe())

    def lingering(self, asked: Asked) -> Sequence[str]:
        """See `LoraHandling`."""
        names = {use.name.replace(".", "_") for use in asked.loras}
        acting = [name for place in self.places() for name in live_adapters(place.owner)]
        return [name for name in dict.fromkeys(acting) if name not in names]

    def unload(self, strays: Mapping[str, Collection[str]]) -> Mapping[str, frozenset[str]] | None:
        """See `LoraHandling`. `settle` has done all that diffusers can."""
        return {}

    def copies(self, place: Place) -> Mapping[str, torch.Tensor]:
        """See `LoraHandling`. diffusers keeps none."""
        return {}

    def touched(self, place: Place) -> frozenset[str]:
        """See `LoraHandling`. What is merged for good is remembered by nobody."""
        return frozenset()

    def forget_records(self) -> None:
        """See `LoraHandling`."""
        _pipe().loaded_loras = []

    def activate_again(self, request: Any, params: Sequence[Any] | None, **options: Any) -> None:
        """See `LoraHandling`. The host's own activation follows."""

    def forget_conditioning(self, request: Any) -> int:
        """See `LoraHandling`. Nothing is cached."""
        return 0

    def reload(self) -> None:
        """See `LoraHandling`."""
        from modules import sd_models

        sd_models.reload_model_weights(force=True)

    def interrupted(self) -> bool:
        """See `LoraHandling`."""
        from modules import shared

        return bool(shared.state.interrupted)

    def reach(self, use: LoraUse, places: Sequence[Place]) -> Reach | None:
        """See `LoraHandling`."""
        from modules import shared

        layers: dict[str, list[str]] | None = getattr(_pipe(), "lora_layers", {}).get(use.name)
        if layers is None:
            return None if use.file is None else Reach(0)
        weights = {component: frozenset(f"{path}.weight" for path in paths) for component, paths in layers.items()}
        merged = str(shared.opts.lora_method).startswith(_FUSED)
        return Reach(sum(map(len, layers.values())), weights if merged else None)

    def refusal(self, use: LoraUse) -> tuple[str, str]:
        """See `LoraHandling`."""
        return "", ""

    def stale(self, use: LoraUse) -> bool:
        """See `LoraHandling`. The file is read at each activation."""
        return False

    def permanent_fix(self) -> tuple[str, str]:
        """See `LoraHandling`."""
        from modules import shared

        if not str(shared.opts.lora_method).startswith(_FUSED):
            return "", ""
        return (
            f'The option "lora_method" is "{shared.opts.lora_method}": LoRAs are merged into the weights, and taken out'
            " by subtraction or not at all.",
            'Settings > LoRA > "How LoRAs are applied": adapters.',
        )


def places_of(component: str, owner: torch.nn.Module, checkpoint: str) -> Place:
    """A component of a diffusers folder, with the files that lie in its own folder."""
    files = sorted(Path(checkpoint, component).glob("*.safetensors"))
    return Place(component, owner, checkpoint, tuple(files))


def _pipe() -> Any:
    from modules import sd_models

    return sd_models.model_data.sd_model

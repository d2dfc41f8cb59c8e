"""How SD.Next puts LoRAs into the model: into the weights, while it activates a request's extra networks.

Of commit 058a7f0c this relies on (line numbers of modules/lora unless a file is named):
  lora_common.extra_network_lora.activate(p, params, step, include, exclude)
                                  loads, removes and applies (extra_networks_lora.py:191); called within
                                  `process_images`, behind every callback of a Script (processing_diffusers.py:151)
  extra_networks_lora.parse       the tags in numbers; LoRAs of strength 0 are left out (:104)
  ExtraNetworkLora.changed        goes by `pipe.loaded_loras`, one key for each way of filtering components, so that a
                                  request without LoRAs equals one that was never made (:165-186)
  lora_common.loaded_networks, .previously_loaded_networks
                                  lists of Network, whose strengths are set anew on the cached object before it is
                                  subtracted (lora_load.py:311); `modules` by the layer's name
  layer.network_layer_name, .network_current_names
  layer.network_weights_backup    a copy on the CPU, or True where LoRAs are fused (lora_apply.py:37-41); then they are
                                  removed by subtraction (networks.py:108), which leaves a residue
  lora_apply.network_apply_weights(layer, None, None, device)
                                  puts a layer back from its copy, a quantized one too (:252)
  lora_load.lora_cache            Networks by name, whatever has become of the file (:29)
  pipe.disable_lora               switches adapters of the diffusers method off in place
  sd_hijack_te.prompt_cache, prompt_parser_diffusers.cache
                                  encoded prompts; the first is by the prompt alone (sd_hijack_te.py:12-38)
  pipe.sd_checkpoint_info.path    the folder or the file that was loaded
A fused LoRA is not subtracted here either: what is exact lies in the checkpoint's file.
"""

from __future__ import annotations

import itertools
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..tensors.weights import live_adapters, weights_of
from .lora_handling import Asked, LoraUse, Place, Reach

_COMPONENTS = ("text_encoder", "text_encoder_2", "text_encoder_3", "unet", "transformer", "transformer_2")
_TEXT = "text_encoder"

#: The labels on the page Settings > Networks (ui_definitions.py:683-690).
_PAGE = "Settings > Networks"
_FUSE = f'{_PAGE} > "LoRA native fuse with model"'
_FORCE = f'{_PAGE} > "LoRA force reload always"'
_FUSE_DIFFUSERS = f'{_PAGE} > "LoRA diffusers fuse with model"'


class SdNextLoraHandling:
    """See the module's docstring and `LoraHandling`."""

    eager = True

    def __init__(self) -> None:
        self._turns = itertools.count()
        #: What each Network was read from, while the host keeps it.
        self._stamps: weakref.WeakKeyDictionary[Any, tuple[int, int]] = weakref.WeakKeyDictionary()
        #: The components that the last request left out.
        self._excluded: frozenset[str] = frozenset()
        #: Whether text encoders may have been changed since encoded prompts were forgotten.
        self._reaches_text = False

    def activation(self) -> tuple[object, str] | None:
        """See `LoraHandling`."""
        from modules.lora import lora_common

        network = lora_common.extra_network_lora
        return (network, "activate") if network is not None else None

    def places(self) -> Sequence[Place]:
        """See `LoraHandling`."""
        pipe = _pipe()
        found = [(name, getattr(pipe, name, None)) for name in _COMPONENTS]
        return [_place(pipe, name, one) for name, one in found if isinstance(one, torch.nn.Module)]

    def asked(self, request: Any, params: Sequence[Any] | None, **options: Any) -> Asked:
        """See `LoraHandling`."""
        from modules import shared
        from modules.lora import extra_networks_lora, lora_load, lora_overrides

        names, te, unet, dyn, parts = extra_networks_lora.parse(request, list(params or ()), options.get("step", 0))
        known = lora_load.available_network_aliases
        uses = tuple(
            LoraUse.of(name, getattr(known.get(name), "filename", None), (te[n], *unet[n], dyn[n], *parts[n]))
            for n, name in enumerate(names)
        )
        included, self._excluded = tuple(options.get("include") or ()), frozenset(options.get("exclude") or ())
        self._reaches_text = self._reaches_text or (bool(uses) and _TEXT not in self._excluded)
        method, _ = lora_overrides.get_method()
        fused = shared.opts.lora_fuse_native if method == "native" else shared.opts.lora_fuse_diffusers
        # The host subtracts once more at the end of each request then (extra_networks.py:138).
        turn = next(self._turns) if shared.opts.lora_force_reload else 0
        left_out = ",".join(sorted(self._excluded)) if uses else ""
        return Asked(uses, (method, bool(fused), ",".join(included), left_out, turn))

    def settle(self, asked: Asked) -> None:
        """See `LoraHandling`. By copies: what is fused stays, and is the guard's to see. The host's records are reset,
        so that it applies what follows to the base."""
        from modules import devices
        from modules.lora import lora_apply

        pipe = _pipe()
        with devices.inference_context():
            for place in self.places():
                for layer in _layers(place):
                    if isinstance(getattr(layer, "network_weights_backup", None), torch.Tensor):
                        lora_apply.network_apply_weights(layer, None, None, getattr(place.owner, "device", None))
        if any(live_adapters(place.owner) for place in self.places()) and hasattr(pipe, "disable_lora"):
            pipe.disable_lora()
        self.forget_records()

    def lingering(self, asked: Asked) -> Sequence[str]:
        """See `LoraHandling`."""
        names = {use.name.replace(".", "_") for use in asked.loras}
        acting = [name for place in self.places() for name in live_adapters(place.owner)]
        return [name for name in dict.fromkeys(acting) if name not in names]

    def unload(self) -> bool:
        """See `LoraHandling`. Adapters are taken out; what is fused the host would only subtract."""
        from modules.lora import extra_networks_lora

        if not any(live_adapters(place.owner) for place in self.places()):
            return False
        extra_networks_lora.unload_diffusers()
        return True

    def copies(self, place: Place) -> Mapping[str, torch.Tensor]:
        """See `LoraHandling`. `settle` has put them back already."""
        return {}

    def touched(self, place: Place) -> frozenset[str]:
        """See `LoraHandling`. Layers in which something was fused say so."""
        fused = {id(layer) for layer in _layers(place) if getattr(layer, "network_weights_backup", None) is True}
        return frozenset(
            f"{path}.{name}"
            for path, layer in place.owner.named_modules()
            if id(layer) in fused
            for name, _ in layer.named_parameters(recurse=False)
        )

    def forget_records(self) -> None:
        """See `LoraHandling`."""
        from modules.lora import lora_common, networks

        lora_common.previously_loaded_networks = []
        lora_common.loaded_networks.clear()
        networks.applied_layers.clear()
        networks.native_active = False
        _pipe().loaded_loras = {}
        for place in self.places():
            for layer in _layers(place):
                layer.network_current_names = ()
                layer.network_weights_backup = layer.network_bias_backup = None

    def activate_again(self, request: Any, params: Sequence[Any] | None, **options: Any) -> None:
        """See `LoraHandling`. The host's own activation follows."""

    def forget_conditioning(self, request: Any) -> int:
        """See `LoraHandling`. Only where a LoRA may have reached a text encoder."""
        if not self._reaches_text:
            return 0
        from modules import prompt_parser_diffusers, sd_hijack_te

        cached = sd_hijack_te.prompt_cache.cache
        prompts = [*(getattr(request, "prompts", None) or ()), *(getattr(request, "negative_prompts", None) or ())]
        outlived = sum(prompt in cached for prompt in dict.fromkeys(prompts) if isinstance(prompt, str))
        cached.clear()
        prompt_parser_diffusers.cache.clear()
        self._reaches_text = False
        return outlived

    def reload(self) -> None:
        """See `LoraHandling`."""
        from modules import sd_models

        sd_models.reload_model_weights(force=True)

    def interrupted(self) -> bool:
        """See `LoraHandling`. Its loops over the layers stop then (networks.py:56, :123)."""
        from modules import shared

        return bool(shared.state.interrupted)

    def reach(self, use: LoraUse, places: Sequence[Place]) -> Reach | None:
        """See `LoraHandling`."""
        from modules.lora import lora_common

        network = next((one for one in lora_common.loaded_networks if one.name == use.name), None)
        if network is None:
            return self._reach_of_adapter(use, places)
        self._stamps.setdefault(network, use.stamp)
        if not network.modules:
            return self._reach_of_adapter(use, places) or self._reach_of_fused(places)
        weights = {
            place.component: frozenset(_weights_of(place, network.modules))
            for place in places
            if place.component not in self._excluded
        }
        return Reach(len(network.modules), weights)

    def _reach_of_adapter(self, use: LoraUse, places: Sequence[Place]) -> Reach | None:
        name = use.name.replace(".", "_")
        layers = [layer for place in places for layer in live_adapters(place.owner).get(name, ())]
        return Reach(len(layers)) if layers else None

    def _reach_of_fused(self, places: Sequence[Place]) -> Reach | None:
        """An adapter that the host has fused and dropped is in whatever weights it had layers for."""
        from modules import shared

        if not shared.opts.lora_fuse_diffusers:
            return None
        return Reach(None, {place.component: frozenset(weights_of(place.owner)) for place in places})

    def stale(self, use: LoraUse) -> bool:
        """See `LoraHandling`. The host keeps a Network by its name."""
        from modules.lora import lora_common

        network = next((one for one in lora_common.loaded_networks if one.name == use.name), None)
        return network is not None and self._stamps.get(network, use.stamp) != use.stamp

    def permanent_fix(self) -> tuple[str, str]:
        """See `LoraHandling`."""
        from modules import shared

        if shared.opts.lora_force_reload:
            return (
                f"{_FORCE} is on: what is fused is subtracted at the end of each request, and once more before the"
                " next.",
                f"{_FORCE} off.",
            )
        if shared.opts.lora_force_diffusers and shared.opts.lora_fuse_diffusers:
            return (
                f"{_FUSE_DIFFUSERS} is on: LoRAs are fused into the weights, and nothing takes them out again.",
                f"{_FUSE_DIFFUSERS} off.",
            )
        if shared.opts.lora_fuse_native and not shared.opts.lora_force_diffusers:
            return (
                f"{_FUSE} is on, as it is by default: LoRAs are fused into the weights and subtracted again, at the"
                " strength that is asked for by then, and rounded.",
                f"{_FUSE} off, which costs memory for a copy of the layers.",
            )
        return (
            f"One was fused, and then a setting of {_PAGE} > LoRA was changed while it was in the weights.",
            "Change these settings while no LoRA is in use.",
        )


def _pipe() -> Any:
    """The loaded pipeline without asking for it, which would load one; some are wrapped in another (networks.py:24)."""
    model = sys.modules["modules.modeldata"].model_data.sd_model
    return getattr(model, "pipe", model)


def _place(pipe: Any, component: str, owner: torch.nn.Module) -> Place:
    info = getattr(pipe, "sd_checkpoint_info", None)
    path = Path(str(getattr(info, "path", "") or getattr(info, "filename", "")))
    files = (path,) if path.is_file() else tuple(sorted((path / component).glob("*.safetensors")))
    return Place(component, owner, str(path), files)


def _layers(place: Place) -> Iterator[Any]:
    """The layers that have to do with networks."""
    for layer in place.owner.modules():
        if getattr(layer, "network_layer_name", None) is not None:
            yield layer


def _weights_of(place: Place, names: Mapping[str, Any]) -> Iterator[str]:
    for path, layer in place.owner.named_modules():
        if getattr(layer, "network_layer_name", None) in names:
            yield from (f"{path}.{name}" for name, _ in layer.named_parameters(recurse=False))

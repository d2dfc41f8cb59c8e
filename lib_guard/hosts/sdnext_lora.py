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
  pipe.disable_lora               switches adapters of the diffusers method off in place; what wraps the layers stays,
                                  and nothing native gets into a wrapped layer (lora_apply.py:222 assigns its `weight`)
  Network.mtime                   the file's time of change when it was read (lora_load.py:72, lora_diffusers.py:91)
  adapters by other names than LoRAs' are no request's: an IP-Adapter FaceID brings one (diffusers ip_adapter.py)
  sd_hijack_te.prompt_cache, prompt_parser_diffusers.cache
                                  encoded prompts; the first is by the prompt alone (sd_hijack_te.py:12-38)
  pipe.sd_checkpoint_info.path    the folder or the file that was loaded
A fused LoRA is not subtracted here either: what is exact lies in the checkpoint's file. Only where there is no such
file to read is the host's own subtraction better than nothing, at the strengths that the layers themselves have noted.
"""

from __future__ import annotations

import itertools
import sys
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..tensors.weights import live_adapters, weights_of
from .lora_handling import Asked, LoraUse, Place, Reach

_COMPONENTS = ("text_encoder", "text_encoder_2", "text_encoder_3", "unet", "transformer", "transformer_2")
_TEXT, _DIFFUSERS = "text_encoder", "diffusers"

#: The labels on the page Settings > Networks (ui_definitions.py:683-690).
_PAGE = "Settings > Networks"
_FUSE = f'{_PAGE} > "LoRA native fuse with model"'
_FORCE = f'{_PAGE} > "LoRA force reload always"'
_FUSE_DIFFUSERS = f'{_PAGE} > "LoRA diffusers fuse with model"'


#: What goes with the copy of a layer that SDNQ has quantized (lora_apply.py:43-54), and would be taken for its base.
_QUANTIZED_COPIES = frozenset(
    f"sdnq_{name}_backup" for name in ("dequantizer", "scale", "zero_point", "svd_up", "svd_down")
)


class SdNextLoraHandling:
    """See the module's docstring and `LoraHandling`."""

    eager = True

    def __init__(self) -> None:
        self._turns = itertools.count()
        #: What the adapters of the diffusers method were read from, by their names, for each pipeline's component.
        self._stamps: weakref.WeakKeyDictionary[torch.nn.Module, dict[str, tuple[int, int]]]
        self._stamps = weakref.WeakKeyDictionary()
        #: The components that the last request left out.
        self._excluded: frozenset[str] = frozenset()
        #: Whether the last request's LoRAs reach a text encoder, and whether those of one before did since encoded
        #: prompts were forgotten.
        self._reaches_text = self._reached_text = False

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
        self._reached_text = self._reached_text or self._reaches_text
        self._reaches_text = bool(uses) and _TEXT not in self._excluded
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

        places = self.places()
        with devices.inference_context():
            for place in places:
                for layer in _layers(place):
                    if isinstance(getattr(layer, "network_weights_backup", None), torch.Tensor):
                        lora_apply.network_apply_weights(layer, None, None, getattr(place.owner, "device", None))
                if not any(path.is_file() for path in place.files):
                    _subtract(place)
        self._switch_off(asked, places)
        self.forget_records()

    def _switch_off(self, asked: Asked, places: Sequence[Place]) -> None:
        """Adapters that are layers of their own. The native method needs the layers unwrapped."""
        others = _held(places) - _of_loras(places)
        if asked.mode[:1] != (_DIFFUSERS,) or others:
            self._take_out(places)
        elif self._acting(places):
            _pipe().disable_lora()

    def _take_out(self, places: Sequence[Place]) -> None:
        """What switches off all adapters, or takes them all out, would take other ones along."""
        from modules.lora import extra_networks_lora

        loras = _of_loras(places)
        if loras and loras == _held(places):
            extra_networks_lora.unload_diffusers()
        elif loras:
            _pipe().delete_adapters(sorted(loras))

    def _acting(self, places: Sequence[Place]) -> list[str]:
        loras = _of_loras(places)
        acting = [name for place in places for name in live_adapters(place.owner) if name in loras]
        return list(dict.fromkeys(acting))

    def lingering(self, asked: Asked) -> Sequence[str]:
        """See `LoraHandling`."""
        names = {use.name.replace(".", "_") for use in asked.loras}
        return [name for name in self._acting(self.places()) if name not in names]

    def unload(self, strays: Mapping[str, Collection[str]]) -> Mapping[str, frozenset[str]] | None:
        """See `LoraHandling`. Adapters are taken out; what is fused the host would only subtract."""
        if not self._acting(self.places()):
            return {}
        self._take_out(self.places())
        return None

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
        if _pipe() is not None:
            _pipe().loaded_loras = {}
        for place in self.places():
            for layer in _layers(place):
                layer.network_current_names = ()
                layer.network_weights_backup = layer.network_bias_backup = None
                for name in _QUANTIZED_COPIES & vars(layer).keys():
                    delattr(layer, name)

    def activate_again(self, request: Any, params: Sequence[Any] | None, **options: Any) -> None:
        """See `LoraHandling`. The host's own activation follows."""

    def forget_conditioning(self, request: Any) -> int:
        """See `LoraHandling`. Only where a LoRA may have reached a text encoder."""
        if not (self._reaches_text or self._reached_text):
            return 0
        from modules import prompt_parser_diffusers, sd_hijack_te

        cached = sd_hijack_te.prompt_cache.cache
        prompts = [*(getattr(request, "prompts", None) or ()), *(getattr(request, "negative_prompts", None) or ())]
        outlived = sum(prompt in cached for prompt in dict.fromkeys(prompts) if isinstance(prompt, str))
        cached.clear()
        prompt_parser_diffusers.cache.clear()
        self._reached_text = False
        return outlived

    def reload(self) -> None:
        """See `LoraHandling`. The request goes on with the kind of pipeline and the sampler that it had, as after the
        host's own reload in this place (lora_load.py:183-193)."""
        from modules import sd_models, shared

        if not all(_is_there(_pipe(), place) for place in self.places()):
            raise FileNotFoundError("a part of the checkpoint is gone, and the host would be left without a model")
        task, scheduler = sd_models.get_diffusers_task(_pipe()), getattr(_pipe(), "scheduler", None)
        sd_models.reload_model_weights(force=True)
        shared.sd_model = sd_models.set_diffuser_pipe(shared.sd_model, task)
        if scheduler is not None and _pipe() is not None:
            _pipe().scheduler = scheduler

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
        if not network.modules:
            return self._reach_of_adapter(use, places) or self._reach_of_fused(places)
        weights = {
            place.component: frozenset(_weights_of(place, network.modules))
            for place in places
            if place.component not in self._excluded
        }
        return Reach(len(network.modules), weights)

    def _reach_of_adapter(self, use: LoraUse, places: Sequence[Place]) -> Reach | None:
        name, layers = use.name.replace(".", "_"), 0
        for place in places:
            held = live_adapters(place.owner).get(name, ())
            layers += len(held)
            if held:
                self._stamps.setdefault(place.owner, {}).setdefault(name, use.stamp)
        return Reach(layers) if layers else None

    def _reach_of_fused(self, places: Sequence[Place]) -> Reach | None:
        """An adapter that the host has fused and dropped is in whatever weights it had layers for."""
        from modules import shared

        if not shared.opts.lora_fuse_diffusers:
            return None
        return Reach(None, {place.component: frozenset(weights_of(place.owner)) for place in places})

    def refusal(self, use: LoraUse) -> tuple[str, str]:
        """See `LoraHandling`."""
        return "", ""

    def stale(self, use: LoraUse) -> bool:
        """See `LoraHandling`. The host keeps a Network by its name, and diffusers an adapter."""
        from modules.lora import lora_common

        network = next((one for one in lora_common.loaded_networks if one.name == use.name), None)
        if network is None or use.file is None or not use.file.is_file():
            return False
        if network.modules:
            return bool(getattr(network, "mtime", None) not in (None, use.file.stat().st_mtime))
        name = use.name.replace(".", "_")
        owners = [place.owner for place in self.places() if name in live_adapters(place.owner)]
        return any(self._stamps.get(owner, {}).get(name, use.stamp) != use.stamp for owner in owners)

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


def _checkpoint(pipe: Any) -> Path:
    """The folder or the file that was loaded."""
    info = getattr(pipe, "sd_checkpoint_info", None)
    return Path(str(getattr(info, "path", "") or getattr(info, "filename", "")))


def _place(pipe: Any, component: str, owner: torch.nn.Module) -> Place:
    path = _checkpoint(pipe)
    files = (path,) if path.is_file() else tuple(sorted((path / component).glob("*.safetensors")))
    return Place(component, owner, str(path), files)


def _is_there(pipe: Any, place: Place) -> bool:
    """Whether the host can load a component again, in whatever form its weights lie there."""
    path = _checkpoint(pipe)
    return path.is_file() or bool(place.files) or any((path / place.component).glob("*.bin"))


def _layers(place: Place) -> Iterator[Any]:
    """The layers that have to do with networks."""
    for layer in place.owner.modules():
        if getattr(layer, "network_layer_name", None) is not None:
            yield layer


def _held(places: Sequence[Place]) -> set[str]:
    """The names of all PEFT adapters, switched off or not."""
    return {name for place in places for name in getattr(place.owner, "peft_config", ())}


def _of_loras(places: Sequence[Place]) -> set[str]:
    """Those that the host has made of LoRAs. One that it fetched for a request is named by an address."""
    from modules.lora import lora_load

    known = {str(name).replace(".", "_") for name in lora_load.available_network_aliases}
    return {name for name in _held(places) if name in known or name.startswith("/")}


def _subtract(place: Place) -> None:
    """What the host does with a fused LoRA, at the strengths at which it was added to each layer: those of its own
    Network may be the next request's by now (lora_load.py:311). It leaves a residue."""
    from modules.lora import lora_apply, lora_common, lora_load

    held = [*lora_common.previously_loaded_networks, *lora_common.loaded_networks, *lora_load.lora_cache.values()]
    networks = {network.name: network for network in held}
    for layer in _layers(place):
        noted = getattr(layer, "network_current_names", ())
        if getattr(layer, "network_weights_backup", None) is not True or any(one[0] not in networks for one in noted):
            continue
        lora_common.previously_loaded_networks = [networks[name] for name, *_ in noted]
        for name, te, unet, dyn in noted:
            network = networks[name]
            network.te_multiplier, network.unet_multiplier, network.dyn_dim = te, unet, dyn
        updown, bias = lora_apply.network_calc_weights(layer, layer.network_layer_name, use_previous=True)
        device = getattr(place.owner, "device", None)
        lora_apply.network_apply_direct(layer, updown, bias, deactivate=True, device=device)


def _weights_of(place: Place, names: Mapping[str, Any]) -> Iterator[str]:
    for path, layer in place.owner.named_modules():
        if getattr(layer, "network_layer_name", None) in names:
            yield from (f"{path}.{name}" for name, _ in layer.named_parameters(recurse=False))

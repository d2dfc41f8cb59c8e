"""How AUTOMATIC1111's Lora extension puts LoRAs into the model: layer by layer, at each layer's next forward.

Of version 1.10.1 this relies on (line numbers of extensions-builtin/Lora unless a folder is named):
  extra_network_registry["lora"].activate(p, params)
                                  fills `networks.loaded_networks` from the parsed tags and from the option `sd_lora`
                                  (extra_networks_lora.py:14-46); also called for the second pass of hires fix
  networks.loaded_networks        each has `name`, `network_on_disk.filename`, three strengths, and its `modules` by the
                                  layer's name (network.py:85)
  layer.network_current_names     what is merged into this layer, by the host's own account; it lies after an exception
                                  between two LoRAs (networks.py:411-540)
  layer.network_weights_backup, .network_bias_backup
                                  copies on the CPU from before the first merge; thrown away whenever a checkpoint is
                                  loaded, also where the checkpoint holds no such tensor (:572-605)
  network_forward                 the functional path: puts every layer back and merges nothing, but does neither when
                                  no LoRA is loaded (:543-566)
  load_network                    reads a file anew when its time has changed (:288), but layers with equal names are
                                  not merged anew
  sd_models.reload_model_weights  loads into the same modules when the config is the same (modules/sd_models.py:940)
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..files.header import UnreadableFile, read_header
from ..tensors.restore import stamp
from .a1111_causes import OLD_METHOD
from .ldm_conditioning import ConditioningCaches
from .lora_handling import Asked, LoraUse, Place, Reach

#: A key of a network that changes a part of a layer (networks.py:47).
_PART = re.compile(r"(.*)_(?:q|k|v|out)_proj$")

#: Where a layer's copies hang.
_BACKUPS = ("network_weights_backup", "network_bias_backup")

#: The attribute of the model that holds its file and the file's stamp.
_STAMP = "_lib_guard_stamp"


class A1111LoraHandling:
    """See the module's docstring and `LoraHandling`."""

    eager = False

    def __init__(self) -> None:
        #: Whether the request that was asked about last has extra networks disabled.
        self._disabled = False
        self._conditioning = ConditioningCaches()

    def activation(self) -> tuple[object, str] | None:
        """See `LoraHandling`."""
        from modules import extra_networks

        network = extra_networks.extra_network_registry.get("lora")
        return (network, "activate") if network is not None and _networks() is not None else None

    def loaded(self, model: Any) -> None:
        """The host has read weights into a model (script_callbacks.on_model_loaded)."""
        vars(model).pop(_STAMP, None)

    def places(self) -> Sequence[Place]:
        """See `LoraHandling`."""
        from modules import sd_models

        model = sd_models.model_data.sd_model
        if model is None:
            return ()
        return [_place(model, *part) for part in (*_text_encoders(model), *_denoiser(model))]

    def asked(self, request: Any, params: Sequence[Any] | None, **options: Any) -> Asked:
        """See `LoraHandling`. The host has just filled its list from these tags."""
        self._disabled = params is None and self.activation() is not None
        asked = self._asked(params)
        self._conditioning.note(request, params, asked)
        return asked

    def _asked(self, params: Sequence[Any] | None) -> Asked:
        from modules import shared

        mode = (bool(getattr(shared.opts, "lora_functional", False)),)
        networks = _networks()
        if params is None or networks is None:
            return Asked((), mode)
        loaded = [_use(one) for one in networks.loaded_networks]
        names = {use.name for use in loaded}
        missing = dict.fromkeys(str(one.positional[0]) for one in params if str(one.positional[0]) not in names)
        return Asked((*loaded, *(LoraUse.of(name, _file_of(networks, name), ()) for name in missing)), mode)

    def settle(self, asked: Asked) -> None:
        """See `LoraHandling`. Each layer would be put back at its next forward; copies are the same now."""
        networks = _networks()
        if networks is None or self.activation() is None:
            return
        functional = bool(asked.mode and asked.mode[0])
        if (functional and not networks.loaded_networks) or (networks.loaded_networks and not asked.loras):
            return  # the host leaves what is merged where it is
        for _, layer in _layers(self.places()):
            if functional or getattr(layer, "network_current_names", ()) != ():
                _put_back(networks, layer)

    def lingering(self, asked: Asked) -> Sequence[str]:
        """See `LoraHandling`."""
        networks = _networks() if self.activation() is not None else None
        names = {use.name for use in asked.loras}
        return [str(one.name) for one in getattr(networks, "loaded_networks", ()) if one.name not in names]

    def unload(self, strays: Mapping[str, Collection[str]]) -> Mapping[str, frozenset[str]] | None:
        """See `LoraHandling`. The host has a backup of every layer, whether a LoRA is in it or not."""
        networks = _networks()
        if networks is None:
            return {}
        networks.loaded_networks.clear()
        places = self.places()
        return {place.component: _put_back_some(networks, place, strays.get(place.component, ())) for place in places}

    def copies(self, place: Place) -> Mapping[str, torch.Tensor]:
        """See `LoraHandling`. They hang on the layers, also when the extension is gone."""
        found = {name: copy for path, layer in _layers([place]) for name, copy in _copies(path, layer)}
        return {name: copy for name, copy in found.items() if isinstance(copy, torch.Tensor)}

    def touched(self, place: Place) -> frozenset[str]:
        """See `LoraHandling`. Whatever is merged has a copy, which `settle` puts back."""
        return frozenset()

    def forget_records(self) -> None:
        """See `LoraHandling`. The backups go too: where they were right, the same is in the weights now."""
        networks = _networks()
        if networks is not None:
            networks.loaded_networks.clear()
        for _, layer in _layers(self.places()):
            if getattr(layer, "network_current_names", ()) != ():
                layer.network_current_names = ()
            for name in _BACKUPS:
                if getattr(layer, name, None) is not None:
                    setattr(layer, name, None)

    def activate_again(self, request: Any, params: Sequence[Any] | None, **options: Any) -> None:
        """See `LoraHandling`. The class's own method: the instance may carry LibGuard's."""
        place = self.activation()
        if place is not None and params is not None:
            type(place[0]).activate(place[0], request, params)  # type: ignore[attr-defined]

    def forget_conditioning(self, request: Any) -> int:
        """See `LoraHandling`."""
        return self._conditioning.forget(request)

    def reload(self) -> None:
        """See `LoraHandling`."""
        from modules import sd_models

        sd_models.reload_model_weights(forced_reload=True)

    def interrupted(self) -> bool:
        """See `LoraHandling`. What is merged is merged at the next forward, interrupted or not."""
        return False

    def reach(self, use: LoraUse, places: Sequence[Place]) -> Reach | None:
        """See `LoraHandling`."""
        from modules import shared

        loaded = getattr(_networks(), "loaded_networks", ())
        network = next((one for one in loaded if one.name == use.name), None)
        if network is None:
            return None
        if getattr(shared.opts, "lora_functional", False):
            return Reach(len(network.modules))
        names = {found.group(1) if (found := _PART.match(key)) else key for key in network.modules} | {*network.modules}
        weights = {place.component: frozenset(_weights_of(place, names)) for place in places}
        return Reach(len(network.modules), weights)

    def refusal(self, use: LoraUse) -> tuple[str, str]:
        """See `LoraHandling`."""
        return "", ""

    def stale(self, use: LoraUse) -> bool:
        """See `LoraHandling`. The host looks at the file's time."""
        return False

    def permanent_fix(self) -> tuple[str, str]:
        """See `LoraHandling`."""
        from modules import shared

        if self._disabled:
            return (
                "An extension has extra networks disabled for this request, and the WebUI leaves the LoRAs of the one"
                " before where they are.",
                "Switch off the extension, or the API client's disable_extra_networks.",
            )
        if getattr(shared.opts, "lora_functional", False):
            return (
                f"{OLD_METHOD} is on, by you or by an extension (Regional Prompter sets it), and then the WebUI does"
                " not take merged LoRAs out.",
                f'{OLD_METHOD} off; in Regional Prompter use Attention, or tick "Use LoHa or other".',
            )
        if self.activation() is None:
            return (
                "The Lora extension was switched off while a LoRA was in the weights.",
                "Restart the WebUI after switching off Extensions > Lora.",
            )
        return "", ""


def _networks() -> ModuleType | None:
    """The Lora extension's module, which stays when the UI is reloaded."""
    found = sys.modules.get("networks")
    return found if hasattr(found, "loaded_networks") else None


def _text_encoders(model: Any) -> Iterator[tuple[str, Any, str]]:
    """Component, module and the prefix of its names in a checkpoint; the host's wrappers are seen through."""
    held = getattr(getattr(model, "conditioner", None), "embedders", None)
    if isinstance(held, torch.nn.ModuleList):
        found: list[tuple[str, Any]] = [(f"conditioner.embedders.{number}.", one) for number, one in enumerate(held)]
    else:
        found = [("cond_stage_model.", getattr(model, "cond_stage_model", None))]
    number = 0
    for prefix, one in found:
        inner = getattr(one, "wrapped", one)
        if isinstance(inner, torch.nn.Module) and next(inner.parameters(), None) is not None:
            number += 1
            yield (f"text_encoder_{number}" if number > 1 else "text_encoder"), inner, prefix


def _denoiser(model: Any) -> Iterator[tuple[str, Any, str]]:
    found = getattr(getattr(model, "model", None), "diffusion_model", None)
    if isinstance(found, torch.nn.Module):
        yield "transformer" if hasattr(found, "joint_blocks") else "unet", found, "model.diffusion_model."


def _place(model: Any, component: str, owner: torch.nn.Module, prefix: str) -> Place:
    file = Path(str(model.sd_checkpoint_info.filename))
    if not _holds(file, stamp(file), prefix):
        return Place(component, owner, "", (), prefix)
    # With the file's stamp: the same modules are loaded into again, also from a file that was replaced meanwhile.
    return Place(component, owner, f"{file} {_stamp_when_loaded(model, file)}", (file,), prefix)


def _stamp_when_loaded(model: Any, file: Path) -> tuple[int, int]:
    """The stamp that the file had when LibGuard first saw the model after it was loaded. A file that is touched while
    the model stays brings no other weights, and must not make a LoRA that is in them the checkpoint's. Kept with the
    model, as plain data, because the extension's code is executed anew while the model stays."""
    kept = vars(model).get(_STAMP)
    if kept is None or kept[0] != str(file):
        kept = vars(model)[_STAMP] = (str(file), stamp(file))
    found: tuple[int, int] = kept[1]
    return found


@lru_cache(maxsize=64)
def _holds(file: Path, changed: tuple[int, int], prefix: str) -> bool:
    """Whether a checkpoint has tensors under a prefix; yes where it cannot be told. A checkpoint without a text encoder
    leaves the model the one it has."""
    try:
        names = read_header(file).tensors
    except UnreadableFile:
        return True
    return any(name.startswith(prefix) for name in names)


def _use(network: Any) -> LoraUse:
    strengths = (network.te_multiplier, network.unet_multiplier, network.dyn_dim)
    return LoraUse.of(str(network.name), network.network_on_disk.filename, strengths)


def _file_of(networks: ModuleType, name: str) -> str | None:
    """Of a LoRA that the host knows and could not load."""
    known = networks.available_network_aliases.get(name) or networks.available_networks.get(name)
    return getattr(known, "filename", None)


def _layers(places: Sequence[Place]) -> Iterator[tuple[str, Any]]:
    """The layers that a network can change, with their paths."""
    for place in places:
        for path, layer in place.owner.named_modules():
            if getattr(layer, "network_layer_name", None) is not None:
                yield path, layer


def _put_back(networks: ModuleType, layer: Any) -> None:
    with torch.no_grad():
        networks.network_restore_weights_from_backup(layer)
    layer.network_current_names = ()


def _put_back_some(networks: ModuleType, place: Place, strays: Collection[str]) -> frozenset[str]:
    """The layers that these weights are of, as far as there are backups; returns all weights that this writes."""
    paths = {name.rpartition(".")[0] for name in strays}
    paths |= {path.removesuffix(".out_proj") for path in paths}  # which its torch.nn.MultiheadAttention has the copy of
    written: set[str] = set()
    for path, layer in _layers([place]):
        held = dict(_copies(path, layer)) if path in paths else {}
        if any(copy is not None for copy in held.values()):
            _put_back(networks, layer)
            written |= held.keys()
    return frozenset(written)


def _copies(path: str, layer: Any) -> Iterator[tuple[str, Any]]:
    weight, bias = (getattr(layer, name, None) for name in _BACKUPS)
    if isinstance(weight, tuple):  # torch.nn.MultiheadAttention (networks.py:429)
        yield from ((f"{path}.in_proj_weight", weight[0]), (f"{path}.out_proj.weight", weight[1]))
        yield f"{path}.out_proj.bias", bias
    else:
        yield from ((f"{path}.weight", weight), (f"{path}.bias", bias))


def _weights_of(place: Place, names: set[str]) -> Iterator[str]:
    for path, layer in _layers([place]):
        if layer.network_layer_name in names:
            yield from (f"{path}.{name}" for name, _ in layer.named_parameters())

"""Forge's model as its LoRAs see it: patchers, their clones, and what they remember. Its sources: `forge_lora`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .lora_handling import Place

#: What Forge calls "no LoRA", as the name of a set.
NONE = str([])


@dataclass(frozen=True)
class Part:
    """A component that LoRAs change.

    path: where it is in the patchers' model, with a dot at the end. original, applied, present: the patchers of
    `forge_objects_original`, `forge_objects_after_applying_lora` and `forge_objects`; all have one model and one
    loader, and each has patches of its own.
    """

    place: Place
    path: str
    original: Any
    applied: Any
    present: Any

    def own_names(self, held: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """What is held by the names of the patchers' model, by those of the component."""
        return ((name.removeprefix(self.path), one) for name, one in held.items() if name.startswith(self.path))


def parts() -> list[Part]:
    """Empty when no model is loaded, and where patchers are not of the kind that is described above."""
    from modules import sd_models

    model = sd_models.model_data.sd_model
    if getattr(model, "forge_objects_original", None) is None:
        return []
    unets, clips = _patchers(model, "unet"), _patchers(model, "clip")
    parts = [Part(place, path, *clips) for place, path in _text_encoders(model, clips)] if clips else []
    return [*parts, *(Part(place, path, *unets) for place, path in _denoiser(model, unets))] if unets else parts


def _patchers(model: Any, name: str) -> tuple[Any, Any, Any] | None:
    held = (model.forge_objects_original, model.forge_objects_after_applying_lora, model.forge_objects)
    wrappers = [getattr(objects, name, None) for objects in held]
    original, *others = [getattr(one, "patcher", one) for one in wrappers]
    if not hasattr(original, "lora_loader"):
        return None
    applied, present = (one if hasattr(one, "lora_patches") else original for one in others)
    return original, applied, present


def _denoiser(model: Any, patchers: tuple[Any, Any, Any]) -> Iterator[tuple[Place, str]]:
    found = getattr(patchers[0].model, "diffusion_model", None)
    if isinstance(found, torch.nn.Module):
        component = "unet" if hasattr(found, "input_blocks") else "transformer"
        yield _place(model, component, found, "model.diffusion_model."), "diffusion_model."


def _text_encoders(model: Any, patchers: tuple[Any, Any, Any]) -> Iterator[tuple[Place, str]]:
    number = 0
    for index, (name, child) in enumerate(patchers[0].model.named_children()):
        found = getattr(child, "transformer", None)
        if isinstance(found, torch.nn.Module):
            number += 1
            component = f"text_encoder_{number}" if number > 1 else "text_encoder"
            yield _place(model, component, found, _prefix(model, index, name)), f"{name}.transformer."


def _prefix(model: Any, index: int, name: str) -> str:
    """As checkpoints have it. Encoders of OpenCLIP's have other names there altogether."""
    if getattr(model, "is_sdxl", False):
        return f"conditioner.embedders.{index}.transformer."
    if getattr(model, "is_sd1", False) or getattr(model, "is_sd2", False):
        return "cond_stage_model.transformer."
    return f"text_encoders.{name}.transformer."


def _place(model: Any, component: str, owner: torch.nn.Module, prefix: str) -> Place:
    """Files that were chosen beside the checkpoint (VAE / Text Encoder) take the place of what it holds."""
    from modules import sd_models

    more = sd_models.model_data.forge_loading_parameters.get("additional_modules") or ()
    files = tuple(Path(str(one)) for one in (*more, model.filename))
    return Place(component, owner, f"{model.filename} {getattr(model, 'sd_model_hash', '')}", files, prefix)


def part_of(place: Place) -> Part | None:
    return next((part for part in parts() if part.place.owner is place.owner), None)


def is_loaded(patcher: Any) -> bool:
    """Whether the host takes this very clone for brought to its device, so that it will not refresh it."""
    return any(one.model is patcher for one in memory_management().current_loaded_models)


def memory_management() -> Any:
    return importlib.import_module("backend.memory_management")


def is_half_way(patcher: Any) -> bool:
    """Whether the host believes that a clone's LoRAs, or none, are in the weights, and has backups of other weights: a
    merge has raised since then."""
    loader = patcher.lora_loader
    if str(list(patcher.lora_patches)) != loader.loaded_hash:
        return False
    return set(loader.backup) != {name for key, held in patcher.lora_patches.items() if not key[3] for name in held}


def put_back(patcher: Any) -> None:
    """Whatever is noted. No weight is computed for it: the backups are hung up again."""
    patcher.lora_loader.refresh(lora_patches={}, offload_device=patcher.offload_device, force_refresh=True)


def let_go_of_clones() -> None:
    """Have the model stand as after loading; all the records together, or the next set would be left out."""
    from modules import sd_models

    model = sd_models.model_data.sd_model
    if getattr(model, "forge_objects_original", None) is None:
        return
    before, model.forge_objects_after_applying_lora = (
        model.forge_objects_after_applying_lora,
        model.forge_objects_original.shallow_copy(),
    )
    for name in ("unet", "clip"):
        _let_go_of(name, model, getattr(before, name, None))
    model.current_lora_hash = NONE
    networks = lora_module()
    if networks is not None:
        networks.loaded_networks.clear()


def _let_go_of(name: str, model: Any, before: Any) -> None:
    """In the batch's own objects. A clone that an extension has made for this batch keeps what else is on it."""
    present: Any = getattr(model.forge_objects, name, None)
    patcher: Any = getattr(present, "patcher", present)
    if present is before:
        setattr(model.forge_objects, name, getattr(model.forge_objects_original, name))
    elif getattr(patcher, "lora_patches", None):
        patcher.lora_patches = {}


def lora_module() -> ModuleType | None:
    """The Lora extension's module; None when there is none."""
    found = sys.modules.get("networks")
    return found if hasattr(found, "loaded_networks") else None

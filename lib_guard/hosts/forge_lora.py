"""How Forge puts LoRAs into the model: all of a component's at once, when the component is next brought to its device.

Of Forge (dfdcbab6, 2.0.1v1.10.1) this relies on:
  extra_network_registry["lora"].activate(p, params)
                                  sd_forge_lora/extra_networks_lora.py:13; fills `networks.loaded_networks` and calls
                                  load_networks. When it raises (a file that cannot be read, a name that is not there),
                                  the host calls it once more with no tags at all (modules/extra_networks.py:136-147)
  load_networks                   sd_forge_lora/networks.py:72: notes the set in `sd_model.current_lora_hash` before it
                                  has read a file, does nothing when the same is noted already, and else makes clones of
                                  the patchers of `forge_objects_original`, which `forge_objects_after_applying_lora`
                                  holds from then on
  patcher.lora_patches            {(filename, strength, 1.0, online): {weight: [[strength, (kind, tensors), ...]]}} of
                                  one clone (backend/patcher/base.py:131); the weight's name is a path in `.model`
  memory_management.load_models_gpu
                                  :611: calls `refresh_loras` of a clone, unless that very clone is in
                                  `current_loaded_models`; of several clones of a model one is
  LoraLoader.refresh              backend/patcher/lora.py:351: does nothing when the set's name is the noted one
                                  (`loaded_hash`); else puts `backup` back, which are the weights themselves from
                                  before, and merges anew. The name is noted last: after a merge that raised half way it
                                  is the one from before
  forge_online_loras              on a layer whose LoRA is added when it is called ("Diffusion in Low Bits", LoRA in
                                  fp16); its weights are not changed
  processing.py:937-957           every batch begins from `forge_objects_original`, and takes what
                                  `forge_objects_after_applying_lora` holds, also where extra networks are disabled and
                                  nothing was activated
  load_lora_state_dict            networks.py:57: what was read is kept by the file's name alone; the tensors are the
                                  file's own bytes, mapped into memory, so that they change with a file that is written
                                  over, and lie beyond its end when it has become shorter: reading them ends the process
  load_lora_for_models            networks.py:15: refuses a file of which more than 12 tensors fit no layer; which those
                                  are, `load_lora` returns
  sd_models.forge_model_reload    loads anew when `model_data.forge_hash` is not that of what is chosen

Everything that touches weights does it in inference mode, in which Forge made them.
"""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..hooks import MARK
from ..wording import on_one_line
from .forge_patchers import (
    NONE,
    is_half_way,
    is_loaded,
    let_go_of_clones,
    lora_module,
    memory_management,
    part_of,
    parts,
    put_back,
)
from .ldm_conditioning import ConditioningCaches
from .lora_handling import Asked, LoraUse, Place, Reach

#: What the Lora extension reads a file with, and finds the layers of its tensors.
_MATCHING = ("load_lora_state_dict", "load_lora", "model_lora_keys_unet", "model_lora_keys_clip")

#: A file with more tensors than that which it does not know Forge refuses as a whole.
_MOST_UNKNOWN = 12

#: A LoRA that is added to a layer's result; the layer does not know its name.
_ONLINE = "a LoRA that is applied on the fly"


class ForgeLoraHandling:
    """See the module's docstring and `LoraHandling`."""

    eager = False

    def __init__(self) -> None:
        #: What was asked for last, by which request, and the tags that this was.
        self._asked = Asked()
        self._request: weakref.ref[Any] | None = None
        self._tags: list[Any] | None = None
        self._conditioning = ConditioningCaches()
        self._read: dict[Path, _Read] = {}

    def activation(self) -> tuple[object, str] | None:
        """See `LoraHandling`."""
        from modules import extra_networks

        network = extra_networks.extra_network_registry.get("lora")
        return (network, "activate") if network is not None and lora_module() is not None else None

    def places(self) -> Sequence[Place]:
        """See `LoraHandling`."""
        return [part.place for part in parts()]

    def asked(self, request: Any, params: Sequence[Any] | None, **options: Any) -> Asked:
        """See `LoraHandling`. The host has just filled its list from these tags, and `sd_lora` has been added."""
        self._request = weakref.ref(request)
        self._tags = None if params is None else list(params)
        uses = () if params is None else tuple(_use(lora_module(), tag) for tag in params)
        self._asked = Asked(uses, (_is_online(),))
        self._conditioning.note(request, params, self._read_of_asked())
        return self._asked

    def settle(self, asked: Asked) -> None:
        """See `LoraHandling`.

        A component that no LoRA is noted for is refreshed as the host will: nothing happens where it believes that
        there is nothing to do. For one that some are noted for the backups are put back, which is the first half of
        what the host does when it merges another set; that it also merges, it must not find the clone loaded. Where
        nothing is asked for and some are noted all the same, the host would leave them in; where another set was merged
        half way over the noted one, it would leave that.
        """
        if any(self._is_written_over(use) for use in asked.loras):
            self._read_again()
        with torch.inference_mode():
            for part in parts():
                patcher = part.applied
                if not patcher.lora_patches and not is_loaded(patcher):
                    patcher.refresh_loras()
                elif patcher.lora_patches and asked.loras and not is_half_way(patcher):
                    put_back(patcher)
                    memory_management().unload_model_clones(patcher)

    def lingering(self, asked: Asked) -> Sequence[str]:
        """See `LoraHandling`."""
        wanted = {use.file for use in asked.loras}
        found = {
            Path(filename).stem: None
            for part in parts()
            for patcher in (part.applied, part.present)
            for filename, *_ in patcher.lora_patches
            if Path(filename) not in wanted
        }
        online = any(part.applied.lora_loader.online_backup and not part.applied.lora_patches for part in parts())
        return [*found, *([_ONLINE] if online and not found else [])]

    def unload(self, strays: Mapping[str, Collection[str]]) -> Mapping[str, frozenset[str]] | None:
        """See `LoraHandling`. All backups are hung up again, which computes nothing. The clones are let go of as well:
        they would bring their LoRAs back."""
        written = {part.place.component: self.touched(part.place) for part in parts()}
        try:
            with torch.inference_mode():
                for part in parts():
                    put_back(part.original)
        finally:
            let_go_of_clones()
        return written

    def copies(self, place: Place) -> Mapping[str, torch.Tensor]:
        """See `LoraHandling`."""
        part = part_of(place)
        return dict(part.own_names(part.original.lora_loader.backup)) if part is not None else {}

    def touched(self, place: Place) -> frozenset[str]:
        """See `LoraHandling`. Where a merge has raised, copies are there and `settle` does not put them back."""
        return frozenset(self.copies(place))

    def forget_records(self) -> None:
        """See `LoraHandling`."""
        for part in parts():
            loader = part.original.lora_loader
            for layer in set(loader.online_backup):
                vars(layer).pop("forge_online_loras", None)
            loader.backup, loader.online_backup, loader.loaded_hash = {}, [], NONE
        let_go_of_clones()

    def activate_again(self, request: Any, params: Sequence[Any] | None, **options: Any) -> None:
        """See `LoraHandling`. Without LibGuard in between, which may be on the method."""
        found = self.activation()
        if found is None or params is None:
            return
        activate: Callable[..., Any] = getattr(*found)
        while hasattr(activate, MARK):
            activate = activate.__wrapped__  # type: ignore[attr-defined]
        activate(request, params)

    def forget_conditioning(self, request: Any) -> int:
        """See `LoraHandling`."""
        return self._conditioning.forget(request)

    def reload(self) -> None:
        """See `LoraHandling`. Where it fails the hash stays empty, so that the next request loads."""
        from modules import sd_models

        sd_models.model_data.forge_hash = ""
        sd_models.forge_model_reload()

    def interrupted(self) -> bool:
        """See `LoraHandling`. Weights are changed before sampling begins, interrupted or not."""
        return False

    def reach(self, use: LoraUse, places: Sequence[Place]) -> Reach | None:
        """See `LoraHandling`. A file that was read may have left no patch: none of its layers was known. After a set of
        which one could not be read, none has: the host gives all of them up, and moves a damaged file away."""
        if use.file is None or self.gave_up() or not _is_listed(use.file):
            return None
        weights: dict[str, frozenset[str]] = {}
        online = False
        for place in places:
            part = part_of(place)
            patches = [] if part is None else list(_patches(part.applied, use.file))
            online = online or any(identifier[3] for identifier, _ in patches)
            names = frozenset(name for _, held in patches if part for name, _ in part.own_names(held))
            if names:
                weights[place.component] = names
        count = sum(len({name.rpartition(".")[0] for name in names}) for names in weights.values())
        return Reach(count, None if online else weights)

    def gave_up(self) -> bool:
        """Whether the host has given up all LoRAs of the last activation, because it has not read one of them."""
        return any(not any(use.stamp) for use in self._asked.loras)

    def refusal(self, use: LoraUse) -> tuple[str, str]:
        """See `LoraHandling`. The host says `LoRA version mismatch`, whatever it is that it does not know."""
        unknown = _unknown_tensors(use.file) if use.file is not None and not self.gave_up() else []
        if len(unknown) <= _MOST_UNKNOWN:
            return "", ""
        return (
            f"Forge knows no layer for {len(unknown)} of its tensors, {on_one_line(unknown[0], 120)} among them, and"
            f' refuses a file that has more than {_MOST_UNKNOWN} of these ("LoRA version mismatch").',
            "Update Forge, or use the LoRA in a WebUI that knows its algorithm and its layers.",
        )

    def stale(self, use: LoraUse) -> bool:
        """See `LoraHandling`."""
        known = self._read.get(use.file) if use.file is not None else None
        return known is not None and known.stamp != use.stamp

    def permanent_fix(self) -> tuple[str, str]:
        """See `LoraHandling`. Asked before anything is repaired, so the host's state still tells."""
        if self._tags is None and self.activation() is not None:
            return (
                "An extension or an API client has extra networks disabled for this request, and Forge then goes on"
                " with the LoRAs of the one before.",
                "Switch off the extension, or the client's disable_extra_networks.",
            )
        if any(is_half_way(part.applied) for part in parts()):
            return (
                "Merging a LoRA failed half way, and Forge takes note of what it merges only at the end"
                " (backend/patcher/lora.py).",
                "Leave out the LoRA whose request failed: it was made for another model, or memory did not suffice.",
            )
        return "", ""

    # What is known from one activation to the next.

    def _read_of_asked(self) -> tuple[Any, ...]:
        """What the text encoder is given; a file that was replaced and not read again does not change it."""
        for use in self._asked.loras:
            self._note_read(use)
        reads = [self._read[use.file].stamp if use.file in self._read else use.stamp for use in self._asked.loras]
        return (*zip([(use.file, use.strengths) for use in self._asked.loras], reads), self._asked.mode)

    def _note_read(self, use: LoraUse) -> None:
        """The host holds the very tensors that it has read, as long as it does not read the file again."""
        patches = (held for part in parts() if use.file for _, held in _patches(part.applied, use.file))
        tensor = next((found for held in patches for found in _tensors(held)), None)
        if use.file is None or tensor is None:
            return
        known = self._read.get(use.file)
        if known is None or known.tensor() is not tensor:
            self._read[use.file] = _Read(weakref.ref(tensor), use.stamp, _inode(use.file))

    def _is_written_over(self, use: LoraUse) -> bool:
        """Whether the very file that the host has mapped was changed. One that was put in its place does no harm."""
        return self.stale(use) and use.file is not None and self._read[use.file].inode == _inode(use.file)

    def _read_again(self) -> None:
        """Have the host read the files of the last activation anew, before it merges what it has of them."""
        networks, request = lora_module(), self._request() if self._request is not None else None
        if networks is None or request is None:
            return
        networks.load_lora_state_dict.cache_clear()
        let_go_of_clones()
        try:
            self.activate_again(request, self._tags)
        except (ValueError, RuntimeError, KeyError, AttributeError, OSError):
            self.activate_again(request, [])  # as the host does it
        self._conditioning.correct(self._read_of_asked())


@dataclass(frozen=True)
class _Read:
    """What the host has read of a file.

    tensor: one of its tensors, which the host holds. stamp, inode: the file's when it was first seen in use.
    """

    tensor: weakref.ref[torch.Tensor]
    stamp: tuple[int, int]
    inode: int


def _inode(file: Path) -> int:
    try:
        return file.stat().st_ino
    except OSError:
        return 0


# The Lora extension.


def _use(networks: ModuleType | None, tag: Any) -> LoraUse:
    """One tag, `<lora:name:te:unet:dyn>` or with names (extra_networks_lora.py:30-41)."""
    positional, named = list(tag.positional), dict(tag.named)
    name = str(positional[0]) if positional else ""
    text = named.get("te", positional[1] if len(positional) > 1 else 1.0)
    unet = named.get("unet", positional[2] if len(positional) > 2 else text)
    return LoraUse.of(name, _file_of(networks, name), (_number(text), _number(unet)))


def _number(text: Any) -> float | str:
    try:
        return float(text)
    except (TypeError, ValueError):
        return str(text)


def _file_of(networks: ModuleType | None, name: str) -> str | None:
    """As the host looks it up (networks.py:83), also where it could not read it."""
    if networks is None:
        return None
    loaded = next((one.network_on_disk for one in networks.loaded_networks if one.name == name), None)
    alias = None if name.lower() in networks.forbidden_network_aliases else networks.available_network_aliases.get(name)
    found = loaded or alias or networks.available_networks.get(name)
    return str(found.filename) if found is not None else None


def _is_listed(file: Path) -> bool:
    """Whether the host has this file among those of the request."""
    loaded = getattr(lora_module(), "loaded_networks", ())
    return any(Path(one.network_on_disk.filename) == file for one in loaded)


def _unknown_tensors(file: Path) -> list[str]:
    """The tensors of a file that was read which fit no layer of the loaded model, found as the host does."""
    from modules import sd_models

    networks: Any = lora_module()
    objects = getattr(sd_models.model_data.sd_model, "forge_objects_original", None)
    if objects is None or file.suffix.lower() != ".safetensors" or not all(hasattr(networks, one) for one in _MATCHING):
        return []
    unknown: Mapping[str, Any] = networks.load_lora_state_dict(str(file))  # which it keeps, and has just read
    for names in (
        networks.model_lora_keys_unet(objects.unet.model),
        networks.model_lora_keys_clip(objects.clip.cond_stage_model),
    ):
        _, unknown = networks.load_lora(unknown, names)
    return list(unknown)


def _is_online() -> bool:
    arguments = getattr(importlib.import_module("backend.args"), "dynamic_args", {})
    return bool(arguments.get("online_lora", False))


def _patches(patcher: Any, file: Path) -> Iterator[tuple[tuple[Any, ...], Mapping[str, Any]]]:
    """The patches of one file, by their identifiers; a file may be asked for in two strengths."""
    return ((key, held) for key, held in patcher.lora_patches.items() if Path(key[0]) == file)


def _tensors(held: object) -> Iterator[torch.Tensor]:
    if isinstance(held, torch.Tensor):
        yield held
    elif isinstance(held, Mapping):
        yield from (found for one in held.values() for found in _tensors(one))
    elif isinstance(held, (list, tuple)):
        yield from (found for one in held for found in _tensors(one))

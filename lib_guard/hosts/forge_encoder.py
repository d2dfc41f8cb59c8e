"""How Forge pairs IP-Adapters with image encoders: each ControlNet unit names a preprocessor, which has one of its own.

Of Forge (dfdcbab6, 2.0.1v1.10.1) this relies on (line numbers of extensions-builtin/sd_forge_ipadapter unless a folder
is named); reForge and Classic have kept it, unless it is said:
  ControlNetForForgeOfficial.get_enabled_units(units)
                                  extensions-builtin/sd_forge_controlnet/scripts/controlnet.py:101: the units of a
                                  request, those from the API made anew from their dict each time. Called in `process`
                                  (:549), ahead of each sampling (:560) and for the finished pictures (:566); the
                                  infotext is written from what the first one returns (:550)
  ControlNetUnit                  lib_controlnet/external_code.py:157: `module` names the preprocessor, `model` the
                                  adapter; `use_preview_as_input` makes the preprocessor none (controlnet.py:299)
  global_state.controlnet_filename_dict
                                  lib_controlnet/global_state.py:52: the adapters' files by the name that a unit has
  modules_forge.shared.supported_preprocessors, .preprocessor_dir
                                  modules_forge/shared.py:41, :35: all preprocessors by name, and where their files are
  PreprocessorClipVision          modules_forge/supported_preprocessor.py:103: `.filename`, `.url`; `.clipvision` is
                                  the loaded encoder, which `global_cache` holds by its path as well (:104). Neither is
                                  ever let go of. `load_clipvision` (:117) downloads the file when it is not there
  the tag `IP-Adapter`            scripts/forge_ipadapter.py:17: a preprocessor that hands an encoder to an adapter;
                                  Revision's are preprocessors of the same class with a tag of their own
  cached_insightface              :36: a preprocessor that looks for faces as well. In reForge there is one class for
                                  all, which asks its own name for `InsightFace`, and gives no CLIP where that has
                                  `(Portrait)`, whose file's name is empty
  IPAdapterApply.apply_ipadapter  lib_ipadapter/IPAdapterPlus.py:598: takes of what it is given what the adapter's
                                  file needs: CLIP alone, a face alone (FaceID), or both (FaceID plus). InstantID it
                                  knows by the preprocessor (:609)
  IPAdapter                       :704: is built as wide as what the encoder gives; a file that is not raises while it
                                  is read into it (:295), and the picture comes without the adapter
  clip_vision.load                backend/patcher/clipvision.py: `.model`, transformers' encoder, and `.patcher`; model
                                  and patcher hold one another in a circle (patcher/base.py:64, patcher/lora.py:346)
  memory_management.unload_model_clones, .soft_empty_cache
                                  backend/memory_management.py:552, :1194; in reForge and Classic
                                  ldm_patched.modules.model_management
"""

from __future__ import annotations

import copy
import gc
import os
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..files.families import EncoderNeed, EncoderOffer, Verdict, family_of
from ..files.families.image_encoder import BUILDS
from ..files.families.ip_adapter import FACE_WIDTH
from ..files.families.verdict import INSIGHTFACE, SPOKEN_ENCODERS, UNKNOWN, VIT_BIGG, VIT_H
from ..files.header import UnreadableFile, read_header
from ..tensors.image_encoder import offer_of, size_in_bytes
from .encoder_handling import AdapterUse, UnitPair

_SCRIPT, _UNITS = "ControlNetForForgeOfficial", "get_enabled_units"
_IP_ADAPTER, _INSTANT_ID = "IP-Adapter", "Instant-ID"

#: A face's embedding and no CLIP.
_FACE = EncoderOffer(INSIGHTFACE, FACE_WIDTH, None)

#: What a preprocessor would download, by a part of the address: the encoders that the adapters were trained on.
_FETCHED = {
    "/h94/IP-Adapter/resolve/main/models/image_encoder/": VIT_H,
    "/h94/IP-Adapter/resolve/main/sdxl_models/image_encoder/": VIT_BIGG,
}

#: The networks that `InsightFaceLoader` asks for (IPAdapterPlus.py:564); insightface downloads them when they are not
#: there.
_FACE_NETWORKS = "buffalo_l"

#: How many files are remembered.
_FILES = 32


class ForgeUnitEncoders:
    """See the module's docstring and `UnitEncoders`."""

    def units(self, request: Any) -> tuple[object, str] | None:
        """See `UnitEncoders`. The pages have a script each, and a request knows which one it runs."""
        scripts = getattr(getattr(request, "scripts", None), "alwayson_scripts", None) or ()
        found = next((one for one in scripts if type(one).__name__ == _SCRIPT), None)
        return (found, _UNITS) if callable(getattr(found, _UNITS, None)) else None

    def pair(self, unit: Any) -> UnitPair | None:
        """See `UnitEncoders`. A preprocessor that gives CLIP and a face gives an adapter what that one takes."""
        preprocessor = _preprocessors().get(str(unit.module))
        file = _adapter_file(str(unit.model))
        if preprocessor is None or file is None or getattr(unit, "use_preview_as_input", False):
            return None
        if not {_IP_ADAPTER, _INSTANT_ID} & _tags(preprocessor):
            return None
        verdict = _verdict(file)
        need = verdict.need
        if need is not None and need.kind == INSIGHTFACE and _is_instant_id(preprocessor, verdict):
            return None
        faces = _looks_for_faces(preprocessor)
        alone = faces and need is not None and need.kind == INSIGHTFACE
        offer = _FACE if alone else _offer(preprocessor)
        face = faces and not alone and (need is None or need.face)
        return UnitPair(AdapterUse(str(unit.model), file), str(unit.module), offer, face)

    def preprocessor_for(self, need: EncoderNeed) -> str | None:
        """See `UnitEncoders`. Of several encoders of a kind it is the one that adapters were trained on."""
        faces = need.face or need.kind == INSIGHTFACE
        if faces and not _finds_faces():
            return None
        found = [one for one in _for_adapters() if _looks_for_faces(one) == faces and _gives(one, need)]
        found.sort(key=lambda one: not _is_original(one))
        return str(found[0].name) if found else None

    def with_preprocessor(self, unit: Any, name: str, request: Any) -> Any:
        """See `UnitEncoders`. The host changes units while it works, so that the original stays as the page has it."""
        changed = copy.copy(unit)
        changed.module = name
        return changed

    def left_out(self, unit: Any, request: Any) -> None:
        """See `UnitEncoders`. The infotext is written from what is handed out."""

    def unload_others(self, pairs: Sequence[UnitPair]) -> Mapping[str, int]:
        """See `UnitEncoders`. One that Revision holds as well stays. What somebody else still holds is not freed, and
        not in the answer."""
        preprocessors = _preprocessors()
        used = [_clip(preprocessors[pair.preprocessor]) for pair in pairs if pair.preprocessor in preprocessors]
        used += [getattr(one, "clipvision", None) for one in preprocessors.values() if _IP_ADAPTER not in _tags(one)]
        names = {one.filename for one in _for_adapters() if not any(_clip(one) is clip for clip in (None, *used))}
        del used  # what is let go of must have no holder here
        return {name: size for name, size in map(_let_go, sorted(names)) if size}

    def text_width(self) -> int | None:
        """See `UnitEncoders`. The keys of the cross-attention take the text as it is."""
        layers = _denoiser().named_modules()
        widths = (getattr(layer, "in_features", None) for path, layer in layers if path.endswith("attn2.to_k"))
        return next((width for width in widths if type(width) is int), None)


# Preprocessors and their encoders.


def _preprocessors() -> Mapping[str, Any]:
    found: Mapping[str, Any] = getattr(sys.modules.get("modules_forge.shared"), "supported_preprocessors", {})
    return found


def _for_adapters() -> list[Any]:
    return [one for one in _preprocessors().values() if _IP_ADAPTER in _tags(one)]


def _tags(preprocessor: Any) -> set[str]:
    return set(getattr(preprocessor, "tags", ()))


def _looks_for_faces(preprocessor: Any) -> bool:
    return hasattr(preprocessor, "cached_insightface") or "InsightFace" in str(preprocessor.name)


def _is_instant_id(preprocessor: Any, verdict: Verdict) -> bool:
    """Whether one of a face's two kinds is meant that the width does not tell apart: InstantID resamples faces."""
    return _INSTANT_ID in _tags(preprocessor) or verdict.variant == "plus"


def _is_original(preprocessor: Any) -> bool:
    return any(part in str(getattr(preprocessor, "url", "")) for part in _FETCHED)


def _gives(preprocessor: Any, need: EncoderNeed) -> bool:
    """Whether what it gives is needed, and on disk. FaceID needs no CLIP; its preprocessor loads one all the same."""
    file = _encoder_file(preprocessor)
    if need.kind == INSIGHTFACE:
        return file is None or file.is_file()
    offer = _offer(preprocessor) if file is not None and file.is_file() else None
    return offer is not None and need.met_by(offer)


def _offer(preprocessor: Any) -> EncoderOffer | None:
    """Of the encoder that is loaded, which is used whatever its file has become; else of its file; else of the one that
    the host would download."""
    file = _encoder_file(preprocessor)
    if file is None:
        return _FACE if _looks_for_faces(preprocessor) else None
    clip = _clip(preprocessor)
    if clip is not None:
        return offer_of(getattr(clip, "model", None))
    return _verdict(file).offer if file.is_file() else _fetched_offer(preprocessor)


def _fetched_offer(preprocessor: Any) -> EncoderOffer | None:
    kind = next((kind for part, kind in _FETCHED.items() if part in str(preprocessor.url)), UNKNOWN)
    offers = (EncoderOffer(build.kind, build.width, hidden) for hidden, build in BUILDS.items())
    return next((offer for offer in offers if offer.kind == kind), None)


def _clip(preprocessor: Any) -> Any:
    """The loaded encoder of a preprocessor, which another one of the same file may have loaded; None when none is."""
    own = getattr(preprocessor, "clipvision", None)
    file = _encoder_file(preprocessor)
    return own if own is not None or file is None else _cache(preprocessor).get(str(file))


def _cache(preprocessor: Any) -> dict[str, Any]:
    found: dict[str, Any] = getattr(preprocessor, "global_cache", {})
    return found


def _encoder_file(preprocessor: Any) -> Path | None:
    """By the path under which the host keeps it (modules/util.py:242); None for a preprocessor that has no CLIP."""
    folder = getattr(sys.modules.get("modules_forge.shared"), "preprocessor_dir", "")
    name = getattr(preprocessor, "filename", "")
    # Not `resolve`: the host follows no links.
    return Path(os.path.abspath(Path(folder, name))) if folder and name else None  # noqa: PTH100


def _finds_faces() -> bool:
    """Whether insightface is installed and has its networks."""
    if "insightface" not in sys.modules and find_spec("insightface") is None:
        return False
    from modules.paths_internal import models_path

    return any(Path(models_path, "insightface", "models", _FACE_NETWORKS).glob("*.onnx"))


# Adapters.


def _adapter_file(name: str) -> Path | None:
    """`None` is a name too, with a file's that is not there."""
    files = getattr(sys.modules.get("lib_controlnet.global_state"), "controlnet_filename_dict", {})
    return Path(files[name]) if name != "None" and name in files else None


def _verdict(file: Path) -> Verdict:
    """What a file is by its header; nothing for a pickle, which is not opened."""
    if file.suffix.lower() != ".safetensors" or not file.is_file():
        return Verdict()
    stat = file.stat()
    return _remembered(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=_FILES)
def _remembered(file: Path, _size: int, _changed: int) -> Verdict:
    try:
        return family_of(read_header(file))
    except UnreadableFile:
        return Verdict()


def _denoiser() -> torch.nn.Module:
    """An empty module when no model is loaded."""
    from modules import sd_models

    model = sd_models.model_data.sd_model
    patcher = getattr(getattr(model, "forge_objects_original", None), "unet", None)
    found = getattr(getattr(patcher, "model", None), "diffusion_model", None)
    return found if isinstance(found, torch.nn.Module) else torch.nn.Module()


# Letting go.


def _let_go(filename: str) -> tuple[str, int]:
    """Have nobody in the host hold the encoder of a file: its name, and how many bytes were freed by that."""
    holders = [one for one in _for_adapters() if one.filename == filename]
    clip = next((clip for clip in map(_clip, holders) if clip is not None), None)
    model = getattr(clip, "model", None)
    if not isinstance(model, torch.nn.Module):
        return "", 0
    offer, size, alive = offer_of(model), size_in_bytes(model), weakref.ref(model)
    _take_off_device(getattr(clip, "patcher", None))
    for one in holders:
        _forget(one, clip)
    del model, clip
    if alive() is not None:
        gc.collect()
    _empty_device_cache()
    kind = SPOKEN_ENCODERS.get(offer.kind, "") if offer is not None else ""
    return (f"{kind} ({filename})" if kind else filename), size if alive() is None else 0


def _forget(preprocessor: Any, clip: Any) -> None:
    """reForge notes the encoder's patcher too (supported_preprocessor.py, setup_model_patcher)."""
    if preprocessor.clipvision is clip:
        preprocessor.clipvision = None
    if getattr(preprocessor, "model_patcher", None) is clip.patcher:
        preprocessor.model_patcher = None
    cache = _cache(preprocessor)
    for path in [path for path, held in cache.items() if held is clip]:
        del cache[path]


def _take_off_device(patcher: Any) -> None:
    """Out of the host's list of what is loaded, in its own way."""
    for memory in _memory_modules():
        unload = getattr(memory, "unload_model_clones", None)
        if callable(unload) and patcher is not None:
            unload(patcher)


def _empty_device_cache() -> None:
    for memory in _memory_modules():
        memory.soft_empty_cache()


def _memory_modules() -> Iterator[Any]:
    names = ("backend.memory_management", "ldm_patched.modules.model_management")
    return (sys.modules[name] for name in names if name in sys.modules)

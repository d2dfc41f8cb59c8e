"""How AUTOMATIC1111 pairs IP-Adapters with image encoders: each unit of sd-webui-controlnet names a preprocessor.

Of that extension (56cec5b, 1.1.455) this relies on:
  Script.get_enabled_units(p)     scripts/controlnet.py:623: a static method; the units of a request, which are those of
                                  its script arguments, not copies. Called at the start of `process`, before any
                                  preprocessor is chosen (:868); with a refiner before each batch (:1237); for its own
                                  batches once (:1315). It writes the infotext at its end (:659)
  ControlNetUnit                  internal_controlnet/args.py:53: `module` names the preprocessor, `model` the adapter;
                                  `ipadapter_input` is an embedding in the place of a picture (controlnet.py:935).
                                  Bounds are checked when it is made (:120), not when it is copied
  Infotext.write_infotext         scripts/infotext.py:39: `extra_generation_params["ControlNet 0"] = unit.serialize()`
  global_state.cn_models, .cn_models_names
                                  scripts/global_state.py:16: the files by the name that a unit has; an API may leave
                                  out the hash, or name a part (controlnet.py:76)
  Preprocessor.all_processors     scripts/supported_preprocessor.py:108: by label, and looked up by name too (:127);
                                  `do_not_need_model` is of those that leave a unit's adapter alone
  LegacyPreprocessor.call_function
                                  scripts/preprocessor/legacy/legacy_preprocessors.py:40, of which
                                  preprocessor_compiled.py:380 to :490 and :1224 hand out embeddings: what is called,
                                  with which `config`, says what is given; a label is a name like any other
  processor.clip_encoder          scripts/preprocessor/legacy/processor.py:381: the loaded encoders, by `config`. Those
                                  that no unit of a request uses are let go of at its start (controlnet.py:890)
  annotator_path.models_path      annotator/annotator_path.py: encoders are in `clip_vision` of it, each a pickle by the
                                  name of its config (annotator/clipvision/__init__.py:106); what is not there is
                                  downloaded. It is loaded into the config's sizes, and raises where it has others
  PreprocessorIPAdapterAuto       scripts/preprocessor/ip_adapter_auto.py:6: chooses by the file's name
                                  (scripts/ipadapter/presets.py:16), and raises for one that it does not know
  IPAdapterModel.load             scripts/ipadapter/ipadapter_model.py:272: the path tells FaceID, InstantID and PuLID
                                  from the others; a file whose path lies about that raises with every preprocessor
  Script.model_cache              scripts/controlnet.py:298: the adapters that are loaded, by a unit's `model`
A wrong pair raises in `process` (image_proj_models.py:151, from plugable_ipadapter.py:148), which the host swallows:
the picture comes without any unit of the request. Where a unit before it is right, that one's adapter is in the UNet by
then, and takes what the request before has left there (plugable_ipadapter.py, `cond_mark`): the picture is neither with
nor without, and the first request of a process fails.
A pickle tells what it takes only when the host has loaded it, so from its second request on: to have it loaded earlier
would draw random numbers in another order, and the extension empties its cache (controlnet.py:885) behind the call that
is looked at.
"""

from __future__ import annotations

import copy
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any

import torch

from ..files.families import EncoderNeed, EncoderOffer, family_of
from ..files.families.image_encoder import BUILDS
from ..files.families.ip_adapter import BY_EMBEDS, BY_HIDDEN, FACE_WIDTH
from ..files.families.verdict import EMBEDS, HIDDEN, INSIGHTFACE, UNKNOWN, VIT_BIGG, VIT_H, VIT_L
from ..files.header import UnreadableFile, read_header
from ..tensors.image_encoder import offer_of
from .encoder_handling import AdapterUse, UnitPair

_TITLE, _UNITS = "controlnet", "get_enabled_units"
_IP_ADAPTER = "IP-Adapter"

#: What the extension's configs build (annotator/clipvision/__init__.py:17 to :78).
_CONFIGS = {"clip_g": VIT_BIGG, "clip_h": VIT_H, "clip_vitl": VIT_L}

#: The config that FaceID plus is given beside a face (processor.py:769).
_OF_FACE_ID_PLUS = "clip_h"

#: A face's embedding and no CLIP.
_FACE = EncoderOffer(INSIGHTFACE, FACE_WIDTH, None)

#: Of an automatic choice that will raise.
_NOTHING = EncoderOffer(UNKNOWN, None, None)

#: The networks that look for faces (processor.py:684); insightface downloads them when they are not there.
_FACE_NETWORKS = "buffalo_l"

#: How many files are remembered.
_FILES = 32


@dataclass(frozen=True)
class _Encoding:
    """What a preprocessor makes of a picture. config: of its CLIP encoder; empty where it has none. face: whether it
    looks for a face."""

    config: str
    face: bool

    def offer(self) -> EncoderOffer:
        """Of the encoder that is loaded, else of the one that its config builds."""
        if not self.config:
            return _FACE
        return offer_of(_live(self.config)) or _built(self.config)

    def is_there(self) -> bool:
        """Whether all that it needs is loaded or on disk."""
        if self.face and not _finds_faces():
            return False
        return not self.config or _live(self.config) is not None or _file_of(self.config).is_file()


class A1111UnitEncoders:
    """See the module's docstring and `UnitEncoders`."""

    def __init__(self) -> None:
        #: The extension's Script, which a reloaded UI defines anew.
        self._script: weakref.ref[type] | None = None

    def units(self, request: Any) -> tuple[object, str] | None:
        """See `UnitEncoders`."""
        scripts = getattr(getattr(request, "scripts", None), "alwayson_scripts", None) or ()
        found = next((type(one) for one in scripts if _is_controlnet(one)), None)
        self._script = weakref.ref(found) if found is not None else None
        return (found, _UNITS) if found is not None else None

    def pair(self, unit: Any) -> UnitPair | None:
        """See `UnitEncoders`. An automatic choice counts as what it comes to."""
        file, preprocessor = _file(str(unit.model)), _preprocessor(str(unit.module))
        brings_embedding = getattr(unit, "ipadapter_input", None) is not None
        if file is None or getattr(preprocessor, "do_not_need_model", True) or brings_embedding:
            return None
        automatic = getattr(preprocessor, "get_preprocessor_by_model", None)
        chosen = preprocessor if automatic is None else _chosen(automatic, str(unit.model))
        encoding = _encoding(chosen)
        need = self._need_of_loaded(str(unit.model)) or _need(file)
        if (encoding is None and chosen is not None) or not _is_built_as_it_is(file, need):
            return None
        use = AdapterUse(str(unit.model), file)
        if encoding is None:
            return UnitPair(use, str(unit.module), _NOTHING, need=need)
        both = encoding.face and bool(encoding.config)
        return UnitPair(use, str(unit.module), encoding.offer(), both, need)

    def preprocessor_for(self, need: EncoderNeed) -> str | None:
        """See `UnitEncoders`. Of those that give the same it is the first, as the extension lists them."""
        faces = need.face or need.kind == INSIGHTFACE
        for one in _for_adapters():
            encoding = _encoding(one)
            if encoding is not None and encoding.face == faces and need.met_by(encoding.offer()):
                return str(one.label) if encoding.is_there() else None
        return None

    def with_preprocessor(self, unit: Any, name: str, request: Any) -> Any:
        """See `UnitEncoders`. What is sent on or pasted is to name the preprocessor that made the picture."""
        changed = copy.copy(unit)
        changed.module = name
        key = _written(unit, request)
        if key is not None:
            request.extra_generation_params[key] = changed.serialize()
        return changed

    def left_out(self, unit: Any, request: Any) -> None:
        """See `UnitEncoders`. The infotext is written already."""
        key = _written(unit, request)
        if key is not None:
            del request.extra_generation_params[key]

    def unload_others(self, pairs: Sequence[UnitPair]) -> Mapping[str, int]:
        """See `UnitEncoders`. The extension does so itself, at the start of each request that has units."""
        return {}

    def text_width(self) -> int | None:
        """See `UnitEncoders`. The keys of the cross-attention take the text as it is."""
        from modules import sd_models

        held = getattr(getattr(sd_models.model_data.sd_model, "model", None), "diffusion_model", None)
        layers = held.named_modules() if isinstance(held, torch.nn.Module) else ()
        widths = (getattr(layer, "in_features", None) for path, layer in layers if path.endswith("attn2.to_k"))
        return next((width for width in widths if type(width) is int), None)

    def _need_of_loaded(self, name: str) -> EncoderNeed | None:
        """What an adapter takes, as the host has built it from its tensors (ipadapter_model.py:293 to :314)."""
        script = self._script() if self._script is not None else None
        loaded = getattr(script, "model_cache", {}).get(name)
        adapter = getattr(getattr(loaded, "model", None), "ipadapter", None)
        kinds = {kind for kind in ("pulid", "instantid", "faceid", "plus") if getattr(adapter, f"is_{kind}", False)}
        if adapter is None or kinds & {"pulid", "instantid"}:
            return None
        if kinds == {"faceid"}:
            return EncoderNeed(INSIGHTFACE, FACE_WIDTH, EMBEDS)
        width = int(adapter.clip_embeddings_dim)
        if "plus" in kinds:
            return EncoderNeed(BY_HIDDEN.get(width, UNKNOWN), width, HIDDEN, "faceid" in kinds)
        return EncoderNeed(BY_EMBEDS.get(width, UNKNOWN), width, EMBEDS)


def _written(unit: Any, request: Any) -> str | None:
    """Under which key the infotext has a unit."""
    held, text = getattr(request, "extra_generation_params", {}), unit.serialize()
    return next((key for key, value in held.items() if key.startswith("ControlNet ") and value == text), None)


def _is_controlnet(script: Any) -> bool:
    """As the extension looks for itself (internal_controlnet/external_code.py:411)."""
    units = vars(type(script)).get(_UNITS)
    return isinstance(units, (staticmethod, FunctionType)) and str(script.title()).lower() == _TITLE


# Preprocessors and their encoders.


def _preprocessor(name: str) -> Any:
    kind = getattr(sys.modules.get("scripts.supported_preprocessor"), "Preprocessor", None)
    return kind.get_preprocessor(name) if kind is not None else None


def _for_adapters() -> Iterator[Any]:
    kind = getattr(sys.modules.get("scripts.supported_preprocessor"), "Preprocessor", None)
    held = getattr(kind, "all_processors", {})
    return (one for one in held.values() if _IP_ADAPTER in one.tags)


def _chosen(automatic: Any, model: str) -> Any:
    """What an automatic choice comes to; None where it raises, which is an assertion (presets.py:19)."""
    try:
        return automatic(model)
    except (AssertionError, KeyError):
        return None


def _encoding(preprocessor: Any) -> _Encoding | None:
    """What a preprocessor gives, told by what it calls; None when it is no CLIP and no face. What looks for faces for
    InstantID (processor.py:702) uses other networks than FaceID was trained on, and no width tells them apart."""
    function = getattr(preprocessor, "call_function", None)
    keywords = function.keywords if isinstance(function, partial) else {}
    called = getattr(function.func if isinstance(function, partial) else function, "__name__", "")
    if called == "clip" and keywords.get("config") in _CONFIGS:
        return _Encoding(keywords["config"], False)
    if called == "face_id_plus":
        return _Encoding(_OF_FACE_ID_PLUS, True)
    return _Encoding("", True) if called == "run_model" and _IP_ADAPTER in preprocessor.tags else None


def _live(config: str) -> Any:
    """The loaded encoder; None when it is not."""
    held = getattr(sys.modules.get("scripts.preprocessor.legacy.processor"), "clip_encoder", {})
    return getattr(held.get(config), "model", None)


def _built(config: str) -> EncoderOffer:
    hidden, build = next((hidden, build) for hidden, build in BUILDS.items() if build.kind == _CONFIGS[config])
    return EncoderOffer(build.kind, build.width, hidden)


def _models_path() -> Path:
    return Path(getattr(sys.modules.get("annotator.annotator_path"), "models_path", ""))


def _file_of(config: str) -> Path:
    return _models_path() / "clip_vision" / f"{config}.pth"


def _finds_faces() -> bool:
    """Whether insightface is installed and has its networks."""
    if "insightface" not in sys.modules and find_spec("insightface") is None:
        return False
    return any((_models_path() / "insightface" / "models" / _FACE_NETWORKS).glob("*.onnx"))


# Adapters.


def _file(model: str) -> Path | None:
    """The file of a unit's model, as the extension finds it (controlnet.py:444 to :458)."""
    if model == "None":
        return None
    state = sys.modules.get("scripts.global_state")
    files: Mapping[str, str | None] = getattr(state, "cn_models", {})
    named = files.get(model) or files.get(_closest(model.lower(), getattr(state, "cn_models_names", {})))
    return Path(named.removeprefix('"').removesuffix('"')) if named else None


def _closest(search: str, names: Mapping[str, str]) -> str:
    """The name that the extension takes for a part of it (controlnet.py:76): the shortest that holds it."""
    found = [search] if search in names else sorted((name for name in names if search in name), key=len)
    return names[found[0]] if search and found else ""


def _need(file: Path) -> EncoderNeed | None:
    """What an adapter takes by its header; None for a pickle, which is not opened."""
    if file.suffix.lower() != ".safetensors" or not file.is_file():
        return None
    stat = file.stat()
    return _remembered(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=_FILES)
def _remembered(file: Path, _size: int, _changed: int) -> EncoderNeed | None:
    try:
        return family_of(read_header(file)).need
    except UnreadableFile:
        return None


def _is_built_as_it_is(file: Path, need: EncoderNeed | None) -> bool:
    """Whether the host takes a file for what it is. It asks the path (ipadapter_model.py:278), and no preprocessor
    helps where that says another kind; InstantID and PuLID have preprocessors that no other adapter can use."""
    path = str(file)
    if "instant_id" in path or "pulid" in path.lower():
        return False
    return need is None or ("faceid" in path) == (need.face or need.kind == INSIGHTFACE)

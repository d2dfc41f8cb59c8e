"""How SD.Next brings IP-Adapters into its pipeline. Line numbers are of commit 058a7f0c.

  modules/ipadapter.py:297 apply        called once in a generation (processing_diffusers.py:80): loads the adapters
                                        that `p.ip_adapter_names` names, or takes out what is loaded; puts the images
                                        into `p.task_args`. The names are gone through wherever a request has the
                                        attribute (:313), also where a request that an extension made by itself, or
                                        one of the API, has None in it
  :174 load_image_encoder               one encoder, of the last name: by `ViT-H` or `ViT-G` in it, else by the kind of
                                        model; loaded anew when `clip_loaded` is another one, whatever is in the
                                        pipeline, so a checkpoint that brings an encoder along is not noticed
  :152 unapply                          sets the strength of all adapters to 0 first, which raises where there are
                                        several, and swallows that: they stay in the UNet. Of a single one it takes
                                        the projection out, and gives the UNet diffusers' plain processors, whatever
                                        attention was chosen (:166)
  :21 clip_loaded, adapters_loaded      what it remembers; the list is never emptied
  modules/processing_diffusers.py:10 set_pipeline_args
                                        returns what the pipeline is called with, in each pass (:152, :315, :405); the
                                        images for the refiner too, which has no adapter
Adapters and encoders lie in the Hub's cache on disk; files that are not there SD.Next fetches, and LibGuard does not.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..files.families import EncoderNeed
from ..files.families.verdict import SIGLIP, VIT_BIGG, VIT_H, VIT_L
from .diffusers_encoder import (
    IMAGE_EMBEDS,
    IMAGES,
    AdapterTraces,
    as_arguments,
    denoiser_of,
    encode,
    holds,
    projections_in,
    takes_no_images,
    text_width_of,
    without_images,
)
from .encoder_handling import AdapterUse, Embedding

#: What in an adapter's name has SD.Next take an encoder, and the encoder's folder in its repository.
_BY_NAME = {VIT_H: ("ViT-H", "models/image_encoder"), VIT_BIGG: ("ViT-G", "sdxl_models/image_encoder")}
#: The encoders that it takes for a kind of model, by the attribute that names their repository.
_BY_MODEL = {VIT_L: "OPEN_ID", SIGLIP: "SIGLIP_ID"}

#: What a request says of each of its adapters, in one order.
_LISTS = ("names", "scales", "crops", "starts", "ends", "images", "masks")


class SdNextEncoders:
    """See the module's docstring and `PipelineEncoders`."""

    def __init__(self) -> None:
        self._traces = AdapterTraces()

    def adapters(self) -> tuple[object, str] | None:
        """See `PipelineEncoders`."""
        from modules import ipadapter

        return ipadapter, "apply"

    def arguments(self) -> tuple[object, str] | None:
        """See `PipelineEncoders`."""
        from modules import processing_diffusers

        return processing_diffusers, "set_pipeline_args"

    def uses(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[AdapterUse]:
        """See `PipelineEncoders`. A name that is not known is the host's to reject."""
        from modules import ipadapter

        names = _names(_request(args, kwargs))
        known = [(name, ipadapter.ADAPTERS_ALL.get(name)) for name in names if not _is_none(name)]
        return [AdapterUse(name, _file_of(entry)) for name, entry in known if entry is not None]

    def lacks_list(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """See `PipelineEncoders`."""
        return getattr(_request(args, kwargs), "ip_adapter_names", ()) is None

    def give_empty_list(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """See `PipelineEncoders`."""
        _request(args, kwargs).ip_adapter_names = []

    def encoder(self) -> torch.nn.Module | None:
        """See `PipelineEncoders`."""
        return getattr(_pipe(), "image_encoder", None)

    def unload_encoder(self) -> None:
        """See `PipelineEncoders`."""
        from modules import ipadapter

        pipe = _pipe()
        if hasattr(pipe, "register_modules"):
            pipe.register_modules(image_encoder=None)
        else:
            pipe.image_encoder = None
        ipadapter.clip_loaded = None

    def has_encoder(self, need: EncoderNeed) -> bool:
        """See `PipelineEncoders`."""
        folder = _encoder_folder(need)
        return folder is not None and holds(folder, need)

    def load_encoder(self, need: EncoderNeed) -> None:
        """See `PipelineEncoders`. By a name that asks for it; what the host remembers would keep it from loading."""
        from modules import ipadapter

        ipadapter.clip_loaded = None
        name, _ = _BY_NAME.get(need.kind, ("", ""))
        ipadapter.load_image_encoder(_pipe(), [name])

    def projections(self) -> Sequence[torch.nn.Module]:
        """See `PipelineEncoders`."""
        return projections_in(_pipe())

    def text_width(self) -> int | None:
        """See `PipelineEncoders`."""
        return text_width_of(_pipe())

    def remember(self) -> None:
        """See `PipelineEncoders`."""
        self._traces.remember(denoiser_of(_pipe()), _attention())

    def leftovers(self) -> Sequence[str]:
        """See `PipelineEncoders`."""
        return self._traces.left_at_last(denoiser_of(_pipe()), _attention())

    def clear(self) -> None:
        """See `PipelineEncoders`."""
        from modules import ipadapter

        self._traces.clear(denoiser_of(_pipe()))
        ipadapter.adapters_loaded = []

    def leave_out(self, places: Sequence[int], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """See `PipelineEncoders`. In the request alone, which says of each adapter what is to be done with it."""
        request = _request(args, kwargs)
        asked = [place for place, name in enumerate(_names(request)) if not _is_none(name)]
        out = {asked[place] for place in places}
        for name in _LISTS:
            found = getattr(request, f"ip_adapter_{name}", None)
            if isinstance(found, list):
                setattr(request, f"ip_adapter_{name}", [one for place, one in enumerate(found) if place not in out])

    def given(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """See `PipelineEncoders`."""
        return _task_args(_request(args, kwargs)).get(IMAGES) is not None

    def give_up(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """See `PipelineEncoders`. Infotext no longer says that there was one."""
        request = _request(args, kwargs)
        _task_args(request).pop(IMAGES, None)
        request.ip_adapter_names = []
        request.extra_generation_params.pop("IP Adapter", None)

    def encode(self, place: int, hidden: bool, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Embedding:
        """See `PipelineEncoders`."""
        return encode(_pipe(), _task_args(_request(args, kwargs))[IMAGES][place], hidden)

    def with_embeddings(self, result: Any, embeddings: Sequence[Embedding], args: Sequence[Any]) -> Any:
        """See `PipelineEncoders`. As the pipelines have it, guidance is on above 1 unless the UNet was taught it
        (pipeline_stable_diffusion.py:755)."""
        if IMAGES not in result:
            return result
        taught = getattr(getattr(getattr(_pipe(), "unet", None), "config", None), "time_cond_proj_dim", None)
        guided = float(result.get("guidance_scale", 7.5) or 0) > 1 and taught is None
        return {**without_images(result), IMAGE_EMBEDS: as_arguments(embeddings, guided)}

    def has_images_in_vain(self, result: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """See `PipelineEncoders`. The refiner's pipeline is one of its own."""
        pipe = args[1] if len(args) > 1 else kwargs.get("model")
        return result.get(IMAGES) is not None and takes_no_images(pipe)

    def without_images(self, result: Any) -> Any:
        """See `PipelineEncoders`."""
        return without_images(result)


def _pipe() -> Any:
    """The loaded pipeline without asking for it, which would load one."""
    model = sys.modules["modules.modeldata"].model_data.sd_model
    return getattr(model, "pipe", model)


def _attention() -> Any:
    """The attention that was chosen when the pipeline's was last set (attention.py:288)."""
    return getattr(_pipe(), "current_attn_name", None)


def _request(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Of `apply(pipe, p, ...)`."""
    return args[1] if len(args) > 1 else kwargs["p"]


def _names(request: Any) -> list[Any]:
    names = getattr(request, "ip_adapter_names", None) or []
    return [names] if isinstance(names, str) else list(names)


def _is_none(name: Any) -> bool:
    return name is None or str(name).lower() == "none"


def _task_args(request: Any) -> dict[str, Any]:
    found: dict[str, Any] = getattr(request, "task_args", None) or {}
    return found


def _file_of(entry: Mapping[str, str]) -> Path | None:
    """An adapter's file, if it was fetched. diffusers looks into the Hub's own cache."""
    folder = "" if entry.get("subfolder", "none") == "none" else entry["subfolder"]
    fetched = _fetched(_hub(), entry["repo"], entry.get("revision", "main"))
    path = fetched / folder / entry["name"] if fetched is not None else None
    return path if path is not None and path.is_file() else None


def _encoder_folder(need: EncoderNeed) -> Path | None:
    """Where the encoder lies, if it was fetched. SD.Next looks into the cache that its settings name."""
    from modules import ipadapter, shared

    cache = str(getattr(shared.opts, "hfcache_dir", "") or _hub())
    if need.kind in _BY_NAME:
        fetched = _fetched(cache, ipadapter.CLIP_ID)
        return fetched / _BY_NAME[need.kind][1] if fetched is not None else None
    return _fetched(cache, getattr(ipadapter, _BY_MODEL[need.kind])) if need.kind in _BY_MODEL else None


def _hub() -> str:
    return str(getattr(sys.modules.get("huggingface_hub.constants"), "HF_HUB_CACHE", ""))


def _fetched(cache: str, repo: str, revision: str = "main") -> Path | None:
    """Where a revision of a repository lies in a cache of the Hub's: `models--owner--name/snapshots/COMMIT`, and
    `refs/REVISION` says which commit that is."""
    place = Path(cache) / f"models--{repo.replace('/', '--')}"
    name = place / "refs" / revision
    commit = name.read_text(encoding="utf-8").strip() if name.is_file() else revision
    found = place / "snapshots" / commit
    return found if cache and found.is_dir() else None

"""IP-Adapters in a diffusers pipeline, and how the embedded host brings them there.

Of diffusers (0.39) this relies on:
  unet.encoder_hid_proj                 holds the projections, `image_projection_layers`, of all adapters
                                        (loaders/unet.py:935); of SD3's transformer `image_proj` is the only one
  unet.config.encoder_hid_dim_type      `ip_image_proj` while adapters are in it (loaders/unet.py:936)
  attention processors                  exchanged for ones of classes that have IPAdapter in their names
  pipe.encode_image                     (image, device, count, hidden) -> embedding of the image and of none
  ip_adapter_image_embeds               a tensor for each adapter, of no image and of the image one behind the other
                                        where the guidance needs both (pipeline_stable_diffusion.py:565-569)
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..files.families import EncoderNeed, family_of
from ..files.header import UnreadableFile, read_header
from .encoder_handling import PLAIN_ATTENTION, AdapterUse, Embedding

#: Where adapters put their projections.
_PROJECTIONS = ("encoder_hid_proj", "image_proj")
_IP_ADAPTER = "IPAdapter"
#: What `set_default_attn_processor` gives to every layer (models/unets/unet_2d_condition.py:695).
_PLAIN = "AttnProcessor"

#: The pipelines' parameters.
IMAGES, IMAGE_EMBEDS = "ip_adapter_image", "ip_adapter_image_embeds"


def denoiser_of(pipe: Any) -> Any:
    """The UNet or the transformer of a pipeline; None when there is none."""
    found = getattr(pipe, "unet", None)
    return found if found is not None else getattr(pipe, "transformer", None)


def projections_in(pipe: Any) -> list[torch.nn.Module]:
    """The image projections in a pipeline's model, in the adapters' order."""
    denoiser = denoiser_of(pipe)
    layers = getattr(getattr(denoiser, "encoder_hid_proj", None), "image_projection_layers", None)
    if layers is not None:
        return list(layers)
    only = getattr(denoiser, "image_proj", None)
    return [only] if isinstance(only, torch.nn.Module) else []


def takes_no_images(pipe: Any) -> bool:
    """Whether a pipeline's UNet is without adapters; others may have theirs where nobody knows."""
    unet = getattr(pipe, "unet", None)
    return hasattr(unet, _PROJECTIONS[0]) and not projections_in(pipe)


def text_width_of(pipe: Any) -> int | None:
    """How wide the text is that a pipeline's UNet takes; None where its config does not tell."""
    width = getattr(getattr(getattr(pipe, "unet", None), "config", None), "cross_attention_dim", None)
    widths = set(width) if isinstance(width, (list, tuple)) else {width}
    only = widths.pop() if len(widths) == 1 else None
    return only if isinstance(only, int) else None


def encode(pipe: Any, image: Any, hidden: bool) -> Embedding:
    """What the pipeline's image encoder makes of the image or the images of one adapter."""
    with torch.no_grad():
        found, empty = pipe.encode_image(image, pipe.image_encoder.device, 1, hidden)
    return Embedding(found, empty)


def as_arguments(embeddings: Sequence[Embedding], guided: bool) -> list[torch.Tensor]:
    """`ip_adapter_image_embeds`. guided: whether the pipeline computes without the images too."""
    return [torch.cat([one.empty[None], one.image[None]]) if guided else one.image[None] for one in embeddings]


def without_images(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A pipeline's arguments without an adapter's images."""
    return {name: value for name, value in arguments.items() if name != IMAGES}


def holds(folder: Path, need: EncoderNeed) -> bool:
    """Whether the image encoder in a folder meets a need, told by its tensors and not by its name."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            offer = family_of(read_header(path)).offer
        except UnreadableFile:
            continue
        if offer is not None and need.met_by(offer):
            return True
    return False


@dataclass(frozen=True)
class _Clean:
    """What a model had where adapters are put now. chosen: the attention that the host's settings named then."""

    projections: Mapping[str, Any]
    type: Any
    processors: Mapping[str, Any]
    chosen: Any = None


class AdapterTraces:
    """What adapters leave in a model, and what was there before."""

    def __init__(self) -> None:
        self._clean: weakref.WeakKeyDictionary[Any, _Clean] = weakref.WeakKeyDictionary()

    def remember(self, denoiser: Any, chosen: Any = None) -> None:
        """Note what the model has, unless adapters are in it, or have left something. chosen: the attention that the
        host's settings name, where it has such a setting."""
        if denoiser is None or self.left(denoiser, chosen):
            return
        config = getattr(denoiser, "config", None)
        self._clean[denoiser] = _Clean(
            {name: getattr(denoiser, name) for name in _PROJECTIONS if hasattr(denoiser, name)},
            getattr(config, "encoder_hid_dim_type", None),
            dict(getattr(denoiser, "attn_processors", {})),
            chosen,
        )

    def left(self, denoiser: Any, chosen: Any = None) -> list[str]:
        """The attributes that hold something of an adapter, and `PLAIN_ATTENTION` where one was taken out by halves.

        Attention processors are only looked for where adapters may have been: asking for them walks the whole model,
        which takes milliseconds.
        """
        found = [name for name in _PROJECTIONS if _is_of_adapters(name, getattr(denoiser, name, None))]
        if not found and not self._may_have_had_adapters(denoiser):
            return []
        processors = getattr(denoiser, "attn_processors", {})
        if any(_IP_ADAPTER in type(one).__name__ for one in processors.values()):
            return [*found, "attention processors"]
        return found or ([PLAIN_ATTENTION] if self._became_plain(denoiser, processors, chosen) else [])

    def _became_plain(self, denoiser: Any, processors: Mapping[str, Any], chosen: Any) -> bool:
        """Whether the model's own processors gave way to those of `set_default_attn_processor`, which keep the whole
        attention matrix in memory, and nobody has chosen that in between."""
        clean = self._clean.get(denoiser)
        if clean is None or clean.chosen != chosen or clean.processors.keys() != processors.keys():
            return False
        plain = [name for name, one in processors.items() if type(one).__name__ == _PLAIN]
        return any(type(clean.processors[name]) is not type(processors[name]) for name in plain)

    def _may_have_had_adapters(self, denoiser: Any) -> bool:
        kind = getattr(getattr(denoiser, "config", None), "encoder_hid_dim_type", None)
        return denoiser is not None and (denoiser in self._clean or kind == "ip_image_proj")

    def left_at_last(self, denoiser: Any, chosen: Any = None) -> list[str]:
        """The same where no adapter is in use; when nothing is left, what was there before is no longer needed."""
        left = self.left(denoiser, chosen)
        if not left and denoiser is not None:
            self._clean.pop(denoiser, None)
        return left

    def clear(self, denoiser: Any) -> None:
        """Put back what was noted; on a model that was never noted, what diffusers gives it when it is built."""
        clean = self._clean.get(denoiser) or _as_built(denoiser)
        for name, value in clean.projections.items():
            setattr(denoiser, name, value)
        if hasattr(getattr(denoiser, "config", None), "encoder_hid_dim_type"):
            denoiser.config.encoder_hid_dim_type = clean.type
        denoiser.set_attn_processor(dict(clean.processors))


def _is_of_adapters(name: str, value: Any) -> bool:
    """`encoder_hid_proj` may be Kolors' projection of its text."""
    return isinstance(value, torch.nn.Module) and (name != _PROJECTIONS[0] or hasattr(value, "image_projection_layers"))


def _as_built(denoiser: Any) -> _Clean:
    """Kolors' text projection was put aside (loaders/ip_adapter.py:350)."""
    classes = sys.modules["diffusers.models.attention_processor"]
    joint = hasattr(denoiser, "image_proj")
    fresh = classes.JointAttnProcessor2_0 if joint else classes.AttnProcessor2_0
    text = getattr(denoiser, "text_encoder_hid_proj", None)
    values = {_PROJECTIONS[0]: text, _PROJECTIONS[1]: None}
    processors = {
        name: fresh() if _IP_ADAPTER in type(one).__name__ else one for name, one in denoiser.attn_processors.items()
    }
    projections = {name: values[name] for name in _PROJECTIONS if hasattr(denoiser, name)}
    return _Clean(projections, "text_proj" if text is not None else None, processors)


class DiffusersEncoders:
    """The embedded host's; see the module's docstring and `PipelineEncoders`."""

    def __init__(self) -> None:
        self._traces = AdapterTraces()

    def adapters(self) -> tuple[object, str] | None:
        """See `PipelineEncoders`."""
        from modules import ip_adapter

        return ip_adapter, "apply"

    def arguments(self) -> tuple[object, str] | None:
        """See `PipelineEncoders`."""
        from modules import ip_adapter

        return ip_adapter, "arguments"

    def uses(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[AdapterUse]:
        """See `PipelineEncoders`."""
        from modules import ip_adapter

        return [AdapterUse(name, ip_adapter.file_of(name)) for name in ip_adapter.wanted(args[0])]

    def lacks_list(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """See `PipelineEncoders`. What is no list the embedded host refuses by itself."""
        return False

    def give_empty_list(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """See `PipelineEncoders`."""

    def encoder(self) -> torch.nn.Module | None:
        """See `PipelineEncoders`."""
        return getattr(_pipe(), "image_encoder", None)

    def unload_encoder(self) -> None:
        """See `PipelineEncoders`."""
        _pipe().register_modules(image_encoder=None)

    def has_encoder(self, need: EncoderNeed) -> bool:
        """See `PipelineEncoders`."""
        return _folder_for(need) is not None

    def load_encoder(self, need: EncoderNeed) -> None:
        """See `PipelineEncoders`."""
        from modules import ip_adapter

        folder = _folder_for(need)
        if folder is not None:
            ip_adapter.load_encoder(_pipe(), folder)

    def projections(self) -> Sequence[torch.nn.Module]:
        """See `PipelineEncoders`."""
        return projections_in(_pipe())

    def text_width(self) -> int | None:
        """See `PipelineEncoders`."""
        return text_width_of(_pipe())

    def remember(self) -> None:
        """See `PipelineEncoders`."""
        self._traces.remember(denoiser_of(_pipe()))

    def leftovers(self) -> Sequence[str]:
        """See `PipelineEncoders`."""
        return self._traces.left_at_last(denoiser_of(_pipe()))

    def clear(self) -> None:
        """See `PipelineEncoders`."""
        self._traces.clear(denoiser_of(_pipe()))
        _pipe().loaded_ip_adapters = []

    def leave_out(self, places: Sequence[int], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """See `PipelineEncoders`."""
        from modules import ip_adapter

        names = ip_adapter.wanted(args[0])
        args[0].ip_adapter = [name for place, name in enumerate(names) if place not in places]

    def given(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """See `PipelineEncoders`."""
        return bool(args[0].ip_adapter) and args[0].ip_adapter_image is not None

    def give_up(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """See `PipelineEncoders`."""
        args[0].ip_adapter = None

    def encode(self, place: int, hidden: bool, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Embedding:
        """See `PipelineEncoders`. One picture is for all adapters."""
        return encode(_pipe(), args[0].ip_adapter_image, hidden)

    def with_embeddings(self, result: Any, embeddings: Sequence[Embedding], args: Sequence[Any]) -> Any:
        """See `PipelineEncoders`."""
        return {**self.without_images(result), IMAGE_EMBEDS: as_arguments(embeddings, args[0].cfg_scale > 1)}

    def has_images_in_vain(self, result: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """See `PipelineEncoders`."""
        return IMAGES in result and takes_no_images(args[1])

    def without_images(self, result: Any) -> Any:
        """See `PipelineEncoders`."""
        return without_images(result)


def _pipe() -> Any:
    from modules import sd_models

    return sd_models.model_data.sd_model


def _folder_for(need: EncoderNeed) -> Path | None:
    from modules import ip_adapter

    return next((folder for folder in ip_adapter.encoders() if holds(folder, need)), None)

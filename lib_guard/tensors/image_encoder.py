"""What a loaded image encoder gives, and what a loaded image projection takes; told by their layers alone.

No weight is read: it may be on another device, quantized, or not there at the moment. A layer's declared sizes stay
what they were built with.

Image encoders: transformers' CLIPVisionModelWithProjection and SiglipVisionModel. Projections: diffusers
models/embeddings.py (ImageProjection, IPAdapterFullImageProjection, IPAdapterFaceIDImageProjection,
IPAdapterPlusImageProjection, IPAdapterFaceIDPlusImageProjection), and the time-dependent one of SD3.
"""

from __future__ import annotations

import torch

from ..files.families.image_encoder import BUILDS, PLACES_336
from ..files.families.ip_adapter import BY_EMBEDS, BY_HIDDEN, FACE_WIDTH
from ..files.families.verdict import (
    EMBEDS,
    HIDDEN,
    INSIGHTFACE,
    SIGLIP,
    UNKNOWN,
    VIT_L,
    VIT_L_336,
    EncoderNeed,
    EncoderOffer,
)


def offer_of(encoder: object) -> EncoderOffer | None:
    """What a loaded image encoder gives; None for what is none that is known."""
    vision = getattr(encoder, "vision_model", None)
    embeddings = getattr(vision, "embeddings", None)
    hidden = _size(getattr(embeddings, "patch_embedding", None), "out_channels")
    if hidden is None:
        return None
    width = _size(getattr(encoder, "visual_projection", None), "out_features")
    if width is None and getattr(vision, "head", None) is not None:
        return EncoderOffer(SIGLIP, None, hidden)
    build = BUILDS.get(hidden)
    kind = build.kind if build is not None and width in (None, build.width) else UNKNOWN
    places = _size(getattr(embeddings, "position_embedding", None), "num_embeddings")
    return EncoderOffer(VIT_L_336 if kind == VIT_L and places == PLACES_336 else kind, width, hidden)


def need_of(projection: object) -> EncoderNeed | None:
    """What a loaded image projection takes; None for what is none that is known."""
    resampled = _size(getattr(projection, "proj_in", None), "in_features")
    if resampled is not None:
        # FaceID plus has a projection of the face beside the one of the picture.
        face = getattr(projection, "proj", None) is not None
        return EncoderNeed(BY_HIDDEN.get(resampled, UNKNOWN), resampled, HIDDEN, face)
    plain = _size(getattr(projection, "image_embeds", None), "in_features")
    if plain is not None:
        return EncoderNeed(BY_EMBEDS.get(plain, UNKNOWN), plain, EMBEDS)
    width = _first_width(getattr(projection, "ff", None))
    if width is None:
        return None
    if width == FACE_WIDTH:
        return EncoderNeed(INSIGHTFACE, width, EMBEDS)
    return EncoderNeed(BY_HIDDEN.get(width, UNKNOWN), width, HIDDEN)


def size_in_bytes(module: torch.nn.Module) -> int:
    """What a module's weights take, wherever they are; nothing for weights that are not there."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(one.numel() * one.element_size() for one in tensors if one.device.type != "meta")


def _first_width(feed_forward: object) -> int | None:
    """How wide what a feed-forward takes is."""
    if not isinstance(feed_forward, torch.nn.Module):
        return None
    widths = (_size(layer, "in_features") for layer in feed_forward.modules())
    return next((width for width in widths if width is not None), None)


def _size(layer: object, name: str) -> int | None:
    found = getattr(layer, name, None)
    return found if type(found) is int else None

"""The reported IP-Adapter faults: an image encoder of another family, and what adapters leave in the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionModelWithProjection

from demo.faults import BASE, INIT, TXT2IMG, Call, Fault

#: By the family of the encoder that they need. The first two and PLUS take ViT-H.
VIT_H, LIGHT, PLUS = "tiny-ip-adapter_sd15", "tiny-ip-adapter_sd15_light", "tiny-ip-adapter-plus_sd15"
VIT_BIGG, RENAMED = "tiny-ip-adapter_sd15_vit-G", "tiny-ip-adapter_sd15_renamed"

_LOST = "mat1 and mat2 shapes cannot be multiplied"


def with_adapters(*names: str, call: Call = TXT2IMG) -> Call:
    """The request with IP-Adapters, all of them for one picture."""
    return Call(call.endpoint, {**call.body, "ip_adapter": list(names), "ip_adapter_image": INIT["init_images"][0]})


def encoder(name: str) -> CLIPVisionModelWithProjection:
    """An image encoder from the disk: `models` holds ViT-H, `sdxl_models` ViT-bigG."""
    from modules import paths

    folder = Path(paths.folders.models) / "IP-Adapter" / name / "image_encoder"
    return CLIPVisionModelWithProjection.from_pretrained(str(folder), local_files_only=True)


@contextmanager
def own_encoders(pipeline: Any) -> Iterator[None]:
    """What a correct caller does: encode the picture for each adapter by the encoder that it was made for."""
    calls: list[bool] = []

    def encode_image(image: Any, device: Any, count: int, hidden: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        layers = pipeline.unet.encoder_hid_proj.image_projection_layers
        layer = layers[len(calls) % len(layers)]
        calls.append(hidden)
        bigg = not hidden and layer.image_embeds.in_features == 1280
        kept = pipeline.image_encoder
        pipeline.image_encoder = encoder("sdxl_models" if bigg else "models").to(pipeline.dtype)
        try:
            return type(pipeline).encode_image(pipeline, image, device, count, hidden)
        finally:
            pipeline.image_encoder = kept

    pipeline.encode_image = encode_image
    try:
        yield
    finally:
        del pipeline.encode_image


@contextmanager
def images_for_adapters_only(_pipeline: Any) -> Iterator[None]:
    """What a correct caller does: hand no image to a pipeline whose UNet has no adapter."""
    from modules import ip_adapter

    original = ip_adapter.arguments

    def arguments(p: Any, pipe: Any) -> dict[str, Any]:
        return original(p, pipe) if pipe.unet.encoder_hid_proj is not None else {}

    ip_adapter.arguments = arguments
    try:
        yield
    finally:
        ip_adapter.arguments = original


def _bring_encoder(pipeline: Any) -> None:
    """As a checkpoint does that holds an image encoder of its own."""
    pipeline.register_modules(image_encoder=encoder("sdxl_models").to(pipeline.dtype))


def _switches() -> list[Fault]:
    rows = {
        "to-vit-G": ("A ViT-H adapter, then a ViT-bigG one", VIT_BIGG, (VIT_H,)),
        "to-vit-H": ("A ViT-bigG adapter, then a ViT-H one", VIT_H, (VIT_BIGG,)),
        "and-back": ("A ViT-H adapter, a ViT-bigG one, the first again", VIT_H, (VIT_H, VIT_BIGG)),
        "to-plus": ("A ViT-bigG adapter, then a plus one, whose width is the same", PLUS, (VIT_BIGG,)),
        "from-plus": ("A plus adapter, then a ViT-bigG one, whose width is the same", VIT_BIGG, (PLUS,)),
    }
    found = [
        Fault(
            f"E01-D-{key}",
            f"{title}: {_LOST}",
            {},
            with_adapters(name),
            before=tuple(with_adapters(one) for one in before),
            leaves=True,
        )
        for key, (title, name, before) in rows.items()
    ]
    half, before = {"cuda_dtype": "FP16"}, (with_adapters(VIT_H),)
    row = Fault("E01-D-half", "The same in half precision", half, with_adapters(VIT_BIGG), before=before, leaves=True)
    return [*found, row]


def _several() -> list[Fault]:
    rows = {
        "H-G": (VIT_H, VIT_BIGG),
        "G-H": (VIT_BIGG, VIT_H),
        "plus-G": (PLUS, VIT_BIGG),
        "three": (VIT_H, VIT_BIGG, PLUS),
    }
    found = [
        Fault(f"E02-D-{key}", "Adapters of two families in one request", {}, with_adapters(*names), clean=own_encoders)
        for key, names in rows.items()
    ]
    unguided = with_adapters(VIT_H, VIT_BIGG, call=Call("txt2img", {**BASE, "cfg_scale": 1.0}))
    return [*found, Fault("E02-D-unguided", "The same without guidance", {}, unguided, clean=own_encoders)]


def _others() -> list[Fault]:
    brought = "A checkpoint that brings an image encoder of another family along"
    renamed = "An adapter whose file's name says another family than its tensors"
    left = "Two adapters at once, then none: argument of type 'NoneType' is not iterable"
    both = (with_adapters(VIT_H, LIGHT),)
    body = {**BASE, "steps": 4, "refiner_checkpoint": "tiny-sdxl-refiner"}
    refined = with_adapters("tiny-ip-adapter_sdxl", call=Call("txt2img", body))
    sdxl, only = {"sd_model_checkpoint": "tiny-sdxl"}, images_for_adapters_only
    return [
        Fault("E03-D", brought, {}, with_adapters(VIT_H), _bring_encoder, clean=own_encoders),
        Fault("E04-D", left, {}, TXT2IMG, before=both, leaves=True),
        Fault("E04-D-refiner", "An adapter and a refiner, which has none", sdxl, refined, clean=only),
        Fault("E05-D-renamed", renamed, {}, with_adapters(RENAMED), clean=own_encoders),
    ]


ENCODER_FAULTS: list[Fault] = [*_switches(), *_several(), *_others()]

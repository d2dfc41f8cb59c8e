"""What a loaded image encoder gives and a loaded projection takes, on the real classes; and that names decide nothing.

No weight is there: the modules are built on the meta device.
"""

from __future__ import annotations

import pytest
import torch
from diffusers.models.embeddings import (
    ImageProjection,
    IPAdapterFaceIDImageProjection,
    IPAdapterFaceIDPlusImageProjection,
    IPAdapterFullImageProjection,
    IPAdapterPlusImageProjection,
)
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, SiglipVisionConfig, SiglipVisionModel

from lib_guard.files.families import EncoderNeed, EncoderOffer
from lib_guard.tensors.image_encoder import need_of, offer_of, size_in_bytes

ENCODERS = {
    "ViT-L": (1024, 768, 224, EncoderOffer("vit_l", 768, 1024)),
    "ViT-L 336": (1024, 768, 336, EncoderOffer("vit_l_336", 768, 1024)),
    "ViT-H": (1280, 1024, 224, EncoderOffer("vit_h", 1024, 1280)),
    "ViT-bigG": (1664, 1280, 224, EncoderOffer("vit_bigg", 1280, 1664)),
    "of no known build": (64, 1024, 224, EncoderOffer("unknown", 1024, 64)),
    "of a known width with another projection": (1280, 768, 224, EncoderOffer("unknown", 768, 1280)),
}


def clip(hidden: int, projection: int, size: int) -> nn.Module:
    config = CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=8,
        projection_dim=projection,
        image_size=size,
        patch_size=14,
    )
    with torch.device("meta"):
        return CLIPVisionModelWithProjection(config)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_told_by_its_layers(name):
    hidden, projection, size, offer = ENCODERS[name]
    assert offer_of(clip(hidden, projection, size)) == offer


def test_siglip_has_a_head_and_no_projection():
    config = SiglipVisionConfig(hidden_size=1152, intermediate_size=8, num_hidden_layers=1, num_attention_heads=8)
    with torch.device("meta"):
        assert offer_of(SiglipVisionModel(config)) == EncoderOffer("siglip", None, 1152)


@pytest.mark.parametrize("other", [None, nn.Linear(2, 2), object()], ids=lambda one: type(one).__name__)
def test_what_is_no_encoder_or_projection_is_nothing(other):
    assert offer_of(other) is None and need_of(other) is None


PROJECTIONS = {
    "plain ViT-H": (lambda: ImageProjection(1024, 768), EncoderNeed("vit_h", 1024, "image_embeds")),
    "plain ViT-bigG": (lambda: ImageProjection(1280, 2048), EncoderNeed("vit_bigg", 1280, "image_embeds")),
    "plain ViT-L": (lambda: ImageProjection(768, 4096), EncoderNeed("vit_l", 768, "image_embeds")),
    "plain, unheard of": (lambda: ImageProjection(99, 768), EncoderNeed("unknown", 99, "image_embeds")),
    "full face": (lambda: IPAdapterFullImageProjection(1280, 768), EncoderNeed("vit_h", 1280, "hidden_states[-2]")),
    "plus": (lambda: IPAdapterPlusImageProjection(1280, 768), EncoderNeed("vit_h", 1280, "hidden_states[-2]")),
    "FaceID": (lambda: IPAdapterFaceIDImageProjection(512, 768), EncoderNeed("insightface", 512, "image_embeds")),
    "FaceID plus": (
        lambda: IPAdapterFaceIDPlusImageProjection(768, 768, 1280, 512),
        EncoderNeed("vit_h", 1280, "hidden_states[-2]", True),
    ),
}


@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_projection_is_told_by_its_layers(name):
    build, need = PROJECTIONS[name]
    with torch.device("meta"):
        assert need_of(build()) == need


def test_1280_is_told_apart_by_what_it_is():
    """ViT-bigG's embedding, or ViT-H's hidden states."""
    with torch.device("meta"):
        plain, plus = need_of(ImageProjection(1280, 768)), need_of(IPAdapterPlusImageProjection(1280, 768))
    h, bigg = EncoderOffer("vit_h", 1024, 1280), EncoderOffer("vit_bigg", 1280, 1664)
    assert [need.met_by(offer) for need in (plain, plus) for offer in (h, bigg)] == [False, True, True, False]


def test_an_unknown_build_is_judged_by_its_width_alone():
    need = EncoderNeed("vit_h", 1024, "image_embeds")
    assert need.met_by(EncoderOffer("unknown", 1024, 64)) and not need.met_by(EncoderOffer("unknown", 1280, 64))
    assert EncoderNeed("unknown", 99, "image_embeds").met_by(EncoderOffer("vit_h", 99, 1280))
    face = EncoderNeed("insightface", 512, "image_embeds")
    assert not face.met_by(EncoderOffer("unknown", 512, 64)) and face.met_by(EncoderOffer("insightface", 512, None))


def test_bytes_are_counted_where_there_are_any():
    assert size_in_bytes(nn.Linear(3, 5).half()) == 2 * (15 + 5)
    assert size_in_bytes(clip(64, 64, 224)) == 0


def test_a_quantized_layer_tells_what_it_was_built_with():
    """Its weight is packed."""
    projection = ImageProjection(1024, 768)
    projection.image_embeds.weight = nn.Parameter(torch.zeros(7, dtype=torch.uint8), requires_grad=False)
    assert need_of(projection) == EncoderNeed("vit_h", 1024, "image_embeds")

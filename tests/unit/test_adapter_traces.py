"""What an IP-Adapter leaves in a model is told from what the model has of its own, and from what a user has chosen."""

from __future__ import annotations

import pytest
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from lib_guard.hosts.diffusers_encoder import AdapterTraces
from lib_guard.hosts.encoder_handling import PLAIN_ATTENTION


@pytest.fixture
def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(4, 8),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=2,
    )


@pytest.fixture
def traces(unet) -> AdapterTraces:
    made = AdapterTraces()
    made.remember(unet, "Scaled-Dot-Product")
    return made


def kinds(unet: UNet2DConditionModel) -> set[type]:
    return {type(one) for one in unet.attn_processors.values()}


def test_attention_that_became_plain_is_left_and_put_back(unet, traces):
    own = dict(unet.attn_processors)
    assert kinds(unet) == {AttnProcessor2_0} and traces.left(unet, "Scaled-Dot-Product") == []
    unet.set_default_attn_processor()
    assert kinds(unet) == {AttnProcessor} and traces.left_at_last(unet, "Scaled-Dot-Product") == [PLAIN_ATTENTION]
    traces.clear(unet)
    assert unet.attn_processors == own and traces.left_at_last(unet, "Scaled-Dot-Product") == []


def test_attention_that_was_chosen_meanwhile_stays(unet, traces):
    unet.set_attn_processor(AttnProcessor())
    assert traces.left_at_last(unet, "Batch matrix-matrix") == []
    assert traces.left(unet, "Scaled-Dot-Product") == [], "it is no longer remembered"


def test_a_model_that_is_plain_from_the_start_is_left_alone(unet):
    unet.set_attn_processor(AttnProcessor())
    traces = AdapterTraces()
    traces.remember(unet, "Batch matrix-matrix")
    unet.set_default_attn_processor()
    assert traces.left_at_last(unet, "Batch matrix-matrix") == []


def test_what_is_left_is_not_remembered_as_the_model_s_own(unet, traces):
    unet.set_default_attn_processor()
    traces.remember(unet, "Scaled-Dot-Product")
    assert traces.left(unet, "Scaled-Dot-Product") == [PLAIN_ATTENTION]


def test_a_model_without_adapters_is_not_walked(unet):
    assert AdapterTraces().left(unet) == []

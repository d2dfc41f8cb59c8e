"""The loaded model's family, from names and shapes alone."""

from __future__ import annotations

import diffusers
import pytest
import torch
from live_models import DIFFUSERS, OWN, named, on_meta, place
from peft import LoraConfig
from test_family_real import FOREIGN, TRANSFORMERS, UNETS, built
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from lib_guard.guards.lora_family import family_of_live, sampling_layers

CONTEXT = {"sd15": 768, "sd2": 1024, "sdxl": 2048}


@pytest.mark.parametrize("models", [DIFFUSERS, OWN], ids=["diffusers' names", "own names"])
@pytest.mark.parametrize("family", DIFFUSERS)
def test_a_model_without_weights_is_told_with_the_tensor_that_decides(family, models):
    found = family_of_live([place(on_meta(models[family]))])
    assert (found.kind, found.family) == ("checkpoint", family)
    evidence = found.evidence[0]
    if family in CONTEXT:
        assert evidence.tensor.endswith("attn2.to_k.weight") and evidence.shape[1] == CONTEXT[family]
        assert found.confidence == "certain"
    assert 3072 in evidence.shape or family in CONTEXT


@pytest.mark.parametrize("family", [*UNETS, *TRANSFORMERS])
def test_whole_models_are_told(family):
    component = "unet" if family in UNETS else "transformer"
    found = family_of_live([place(built((UNETS | TRANSFORMERS)[family]), component)])
    assert found.family == family


@pytest.mark.parametrize("name", FOREIGN)
def test_a_model_that_no_rule_knows_is_unknown(name):
    found = family_of_live([place(built(FOREIGN[name]))])
    assert (found.family, found.candidates, found.confidence) == ("unknown", (), "none")


def test_the_whole_model_as_owner_is_told_as_well():
    model = nn.Module()
    model.add_module("model", nn.Module())
    model.model.add_module("diffusion_model", on_meta(OWN["sdxl"]))
    assert family_of_live([place(model)]).family == "sdxl"


def test_peft_is_seen_through():
    unet = on_meta(DIFFUSERS["sdxl"])
    before = sampling_layers([place(unet)])
    with torch.device("meta"):
        unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v"]))
    assert any("base_layer" in name for name, _ in unet.named_parameters())
    assert sampling_layers([place(unet)]) == before
    found = family_of_live([place(unet)])
    assert found.family == "sdxl" and "base_layer" not in found.describe()


def text_encoder() -> nn.Module:
    return on_meta(lambda: CLIPTextModel(CLIPTextConfig(hidden_size=768, num_hidden_layers=1)))


def test_text_encoders_tell_nothing_and_do_not_disturb():
    assert family_of_live([place(text_encoder(), "text_encoder")]).family == "unknown"
    both = [place(text_encoder(), "text_encoder"), place(on_meta(DIFFUSERS["sd15"]))]
    assert family_of_live(both).family == "sd15"


def test_nothing_is_known_of_nothing():
    assert family_of_live([]).family == family_of_live([place(nn.Module())]).family == "unknown"


class Packed(nn.Module):
    """As quantizers keep a layer: two numbers in a byte, and how wide it is beside them."""

    def __init__(self, into: int, out: int, knows: bool) -> None:
        super().__init__()
        if knows:
            self.in_features, self.out_features = into, out
        self.register_buffer("weight", torch.zeros(into * out // 2, 1, dtype=torch.uint8, device="meta"))


NAME = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


def test_a_packed_layer_is_as_wide_as_it_computes():
    found = family_of_live([place(named({NAME: Packed(2048, 640, knows=True)}))])
    assert found.family == "sdxl" and found.evidence[0].shape == (640, 2048)


def test_a_packed_layer_that_does_not_know_its_width_tells_nothing():
    assert sampling_layers([place(named({NAME: Packed(2048, 640, knows=False)}))]) == []


def test_a_layer_that_has_no_weight_yet_tells_nothing():
    assert sampling_layers([place(named({NAME: nn.LazyConv2d(4, 1)}))]) == []
    conv = nn.Conv2d(4, 4, 1)
    conv.weight = None
    assert sampling_layers([place(named({NAME: conv}))]) == []


def test_two_models_in_one_are_unknown():
    unets = nn.ModuleDict({family: on_meta(DIFFUSERS[family]) for family in ("sd15", "sdxl")})
    assert family_of_live([place(unets)]).family == "unknown"


def test_motion_modules_hide_the_family():
    unet = on_meta(lambda: diffusers.UNetMotionModel(layers_per_block=1))
    assert family_of_live([place(unet)]).family == "unknown"

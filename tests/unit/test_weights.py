"""Which tensors are a model's own, with and without adapters in it."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from lib_guard.tensors.weights import layers, live_adapters, slots_of, weights_of


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.to_q(x) * self.to_k(x) * self.scale


def adapted(name: str = "one") -> nn.Module:
    config = LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False)
    return inject_adapter_in_model(config, nn.Sequential(Attention(), nn.LayerNorm(4)), name)


def test_names_are_the_same_with_and_without_adapters():
    plain = nn.Sequential(Attention(), nn.LayerNorm(4))
    assert set(weights_of(plain)) == set(plain.state_dict()) == set(weights_of(adapted()))


def test_a_layer_under_an_adapter_is_the_very_layer():
    model = adapted()
    assert weights_of(model)["0.to_q.weight"] is model[0].to_q.base_layer.weight


def test_a_place_that_was_emptied_is_known_and_holds_nothing():
    layer = nn.Linear(2, 2)
    layer.weight = None
    assert slots_of(layer)["weight"].tensor is None and "weight" not in weights_of(layer)


def test_a_module_in_two_places_is_named_once():
    shared = nn.Linear(2, 2)
    assert sorted(weights_of(nn.ModuleDict({"a": shared, "b": shared}))) == ["a.bias", "a.weight"]


def test_adapters_that_act_are_told_with_their_layers():
    model = adapted()
    assert live_adapters(model) == {"one": ["0.to_q", "0.to_k"]}


@pytest.mark.parametrize("way", ["disabled", "merged"])
def test_adapters_that_do_not_act_are_not_told(way):
    model = adapted()
    for module in model.modules():
        if hasattr(module, "base_layer"):
            module.enable_adapters(False) if way == "disabled" else module.merge()
    assert live_adapters(model) == {}


def test_layers_are_counted_once():
    assert layers(["a.weight", "a.bias", "b.weight"]) == {"a", "b"}

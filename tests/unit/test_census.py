"""Counting dtypes and naming stragglers."""

from __future__ import annotations

import torch
from torch import nn

from lib_guard.tensors.census import take_census


def model() -> nn.Sequential:
    return nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8)), nn.Sequential(nn.Linear(8, 8)))


def test_a_uniform_component_has_one_dtype_and_no_stragglers():
    census = take_census(model().half())
    assert census.uniform is census.dominant is torch.float16
    assert census.stragglers == () and census.describe() == "float16"


def test_a_whole_part_is_named_once_by_its_topmost_path():
    component = model()
    component[0].half()
    component[1][0].to(torch.float64)
    census = take_census(component)
    assert census.uniform is None and census.dominant is torch.float16
    assert [(s.path, s.dtype, s.tensors) for s in census.stragglers] == [("1", torch.float64, 2)]
    assert census.describe() == "float16 with 1 in float64 (2 tensors)"


def test_a_single_bias_is_named_by_itself():
    component = model()
    component[0][0].bias = nn.Parameter(component[0][0].bias.half())
    assert take_census(component).describe() == "float32 with 0.0.bias in float16 (1 tensor)"


def test_many_stragglers_are_counted_after_the_first():
    component = nn.Sequential(*[nn.Linear(4, 4, bias=False) for _ in range(12)])
    for index in range(0, 10, 2):
        component[index].half()
    assert take_census(component).describe(most=2).endswith("2 in float16 (1 tensor) and 3 more parts")


def test_a_quantized_layer_is_storage_and_counts_for_nothing():
    component = model()
    layer = component[1][0]
    layer.weight = nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    layer.bias = nn.Parameter(layer.bias.half())
    assert take_census(component).uniform is torch.float32


def test_meta_tensors_count_and_nothing_is_read():
    assert take_census(model().to("meta")).uniform is torch.float32


def test_a_component_without_weights():
    census = take_census(nn.ReLU())
    assert census.uniform is None and census.dominant is None and "without weights" in census.describe()

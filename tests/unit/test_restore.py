"""Back to the baseline: only by tensors that prove themselves, in place, and without a trace of what was tried."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lib_guard.tensors.baseline import ATTRIBUTE, Baseline, baseline_of, forget, keep, measure
from lib_guard.tensors.restore import (
    changed_files,
    fingerprints_in_files,
    restore_from_copies,
    restore_from_files,
    stamp,
)


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 6), nn.Conv2d(2, 2, 1), nn.LayerNorm(6)).to(dtype)


def taken(component: nn.Module, *files: Path, prefix: str = "") -> Baseline:
    return Baseline("here", tuple((file, *stamp(file)) for file in files), prefix, measure(component))


def stray(component: nn.Module, baseline: Baseline) -> list[str]:
    return baseline.strays(measure(component))


def spoil(component: nn.Module, *names: str) -> None:
    with torch.no_grad():
        for name, parameter in component.named_parameters():
            if name in names:
                parameter.add_(0.5)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({f"unet.{name}": one for name, one in model().state_dict().items()}, path)
    return path


def test_what_changed_is_told_and_nothing_else():
    component = model()
    baseline = taken(component)
    assert stray(component, baseline) == []
    spoil(component, "0.weight", "2.bias")
    assert stray(component, baseline) == ["0.weight", "2.bias"]


def test_a_weight_that_is_gone_strays():
    component = model()
    baseline = taken(component)
    component[0].weight = None
    assert stray(component, baseline) == ["0.weight"]


@pytest.mark.parametrize("change", [lambda one: one.half(), lambda one: one.repeat(2, 1)])
def test_another_dtype_or_shape_is_nobodys_rest(change):
    component = model()
    baseline = taken(component)
    component[0].weight = nn.Parameter(change(component[0].weight.detach()))
    assert stray(component, baseline) == []
    renewed = baseline.renewed(measure(component))
    spoil(component, "0.weight")
    assert stray(component, baseline) == [] and stray(component, renewed) == ["0.weight"]


def test_other_weights_altogether_are_told_from_a_rest():
    component = model()
    baseline = taken(component)
    spoil(component, "0.weight", "1.weight", "2.bias")
    assert not baseline.is_exchanged(stray(component, baseline))
    spoil(component, "0.bias", "1.bias", "2.weight")
    assert baseline.is_exchanged(stray(component, baseline))


def test_it_is_kept_as_plain_data_and_can_be_taken_away():
    component = model(torch.bfloat16)
    keep(component, taken(component, Path("a.safetensors")))
    kept = vars(component)[ATTRIBUTE]
    assert {type(value) for value in kept.values()} <= {int, str, list, dict}
    assert baseline_of(component) == taken(component, Path("a.safetensors"))
    assert list(component.state_dict()) == list(model().state_dict())
    forget(component)
    assert baseline_of(component) is None and ATTRIBUTE not in vars(component)


def test_one_of_another_version_is_none():
    component = model()
    vars(component)[ATTRIBUTE] = {"version": 99}
    assert baseline_of(component) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("inference", [False, True])
def test_from_the_file_by_name(file, dtype, inference):
    component = model()
    with torch.inference_mode(inference):
        for parameter in component.parameters():
            parameter.data = parameter.detach().to(dtype)
        if inference:
            component[0].weight = nn.Parameter(component[0].weight.clone(), requires_grad=False)
    baseline, weight = taken(component, file, prefix="unet."), component[0].weight
    before = weight.detach().view(torch.uint8).clone()
    with torch.inference_mode(inference), torch.no_grad():
        weight.view(torch.uint8).bitwise_xor_(1)
    assert stray(component, baseline) == ["0.weight"]
    assert restore_from_files(component, baseline, ["0.weight"]) == ["0.weight"]
    assert stray(component, baseline) == [] and component[0].weight is weight
    assert torch.equal(weight.detach().view(torch.uint8), before) and weight.is_inference() == inference


@pytest.mark.parametrize(
    "kept",
    [
        lambda tensor: tensor,
        lambda tensor: tensor.t().contiguous(),
        lambda tensor: tensor.reshape(6, 6, 1, 1),
        lambda tensor: torch.cat([torch.ones(6, 6), tensor, torch.zeros(6, 6)]),
        lambda tensor: tensor.double(),
    ],
    ids=["renamed", "turned", "convolution", "three-in-one", "wider"],
)
def test_from_the_file_by_content(tmp_path, kept):
    component, path = model(), tmp_path / "single.safetensors"
    decoys = {"decoy": torch.ones(6, 6), "ids": torch.arange(36).reshape(6, 6)}
    save_file({**decoys, "another.name": kept(component[0].weight.detach())}, path)
    baseline = taken(component, path)
    spoil(component, "0.weight")
    assert restore_from_files(component, baseline, ["0.weight"]) == ["0.weight"] and stray(component, baseline) == []


def test_a_file_that_holds_something_else_writes_nothing(tmp_path):
    component, path = model(), tmp_path / "other.safetensors"
    save_file({"0.weight": torch.zeros(6, 6)}, path)
    baseline = taken(component, path)
    spoil(component, "0.weight")
    spoilt = component[0].weight.detach().clone()
    assert restore_from_files(component, baseline, ["0.weight"]) == []
    assert torch.equal(component[0].weight, spoilt) and stray(component, baseline) == ["0.weight"]


@pytest.mark.parametrize("content", [b"", b"\x80pickle", None], ids=["empty", "pickle", "gone"])
def test_a_file_that_is_none_is_passed_over_and_told(file, content):
    component = model()
    baseline = taken(component, file, prefix="unet.")
    spoil(component, "0.weight")
    file.unlink() if content is None else file.write_bytes(content)
    assert restore_from_files(component, baseline, ["0.weight"]) == []
    assert changed_files(baseline) == [file]


def test_copies_are_believed_only_when_they_prove_themselves():
    component = model()
    baseline = taken(component)
    right, wrong = component[0].weight.detach().clone(), torch.zeros(2, 2, 1, 1)
    spoil(component, "0.weight", "1.weight")
    copies = {"0.weight": right, "1.weight": wrong}
    assert restore_from_copies(component, baseline, ["0.weight", "1.weight"], copies) == ["0.weight"]
    assert stray(component, baseline) == ["1.weight"]


def test_an_emptied_place_is_filled_again(file):
    component = model()
    baseline = taken(component, file, prefix="unet.")
    component[0].weight = None
    assert restore_from_files(component, baseline, ["0.weight"]) == ["0.weight"]
    assert isinstance(component[0].weight, nn.Parameter) and stray(component, baseline) == []


def test_what_the_file_would_give_is_known_without_loading_it(file):
    component = model(torch.float16)
    expected = {name: one for name, one in measure(component).items() if name in ("0.weight", "0.bias")}
    spoil(component, "0.weight")
    assert fingerprints_in_files(component, [file], "unet.", expected) == expected

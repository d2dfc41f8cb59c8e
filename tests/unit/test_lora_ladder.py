"""The ladder back to the baseline compares what was written, by whom and wherever that was."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lib_guard.guards import lora_ladder
from lib_guard.guards.lora_ladder import Ladder
from lib_guard.hosts.diffusers_lora import DiffusersLoraHandling
from lib_guard.hosts.lora_handling import Asked, Place
from lib_guard.tensors.baseline import Baseline, measure
from lib_guard.tensors.restore import stamp


class Unloading(DiffusersLoraHandling):
    """A host whose unload copies what it holds in `writes`, and tells what `tells` says."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.writes: dict[str, torch.Tensor] = {}
        self.tells: Mapping[str, frozenset[str]] | None = {}
        self.was_given: Mapping[str, Collection[str]] = {}

    def places(self) -> Sequence[Place]:
        return [self.place]

    def lingering(self, asked: Asked) -> Sequence[str]:
        return ()

    def unload(self, strays: Mapping[str, Collection[str]]) -> Mapping[str, frozenset[str]] | None:
        self.was_given = {component: list(names) for component, names in strays.items()}
        with torch.no_grad():
            for name, tensor in self.writes.items():
                self.place.owner.get_parameter(name).copy_(tensor)
        return self.tells

    def reload(self) -> None:
        raise RuntimeError("this host cannot load")


@pytest.fixture
def unet() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))


@pytest.fixture
def clean(unet) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in unet.state_dict().items()}


@pytest.fixture
def host(unet, clean, tmp_path) -> Unloading:
    file = tmp_path / "model.safetensors"
    save_file(clean, file)
    return Unloading(Place("unet", unet, "here", (file,)))


@pytest.fixture
def ladder(host, unet) -> Ladder:
    files = tuple((file, *stamp(file)) for file in host.place.files)
    found = Ladder(host, [(host.place, Baseline("here", files, "", measure(unet)))])
    with torch.no_grad():
        unet[1].weight.add_(1)
    return found


def is_clean(unet: nn.Module, clean: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, clean[name]) for name, tensor in unet.state_dict().items())


@pytest.fixture
def compared(monkeypatch) -> list[set[str]]:
    """The weights whose fingerprints were taken, one set a time."""
    found: list[set[str]] = []

    def watched(owner, names=None):
        taken = measure(owner, names)
        found.append(set(taken))
        return taken

    monkeypatch.setattr(lora_ladder, "measure", watched)
    return found


def test_only_what_the_unload_wrote_is_compared_anew(host, ladder, unet, clean, compared):
    host.writes, host.tells = {"1.weight": clean["1.weight"]}, {"unet": frozenset({"1.weight", "1.bias"})}
    assert ladder.strays() == {"unet": ["1.weight"]}
    assert ladder.climb(Asked()) == ("by the WebUI's own unload", True)
    assert host.was_given == {"unet": ["1.weight"]}
    assert compared == [set(clean), {"1.weight", "1.bias"}] and is_clean(unet, clean)


def test_what_the_unload_spoils_is_seen_where_it_tells(host, ladder, unet, clean):
    spoilt = {"1.weight": clean["1.weight"], "2.bias": clean["2.bias"] + 1}
    host.writes, host.tells = spoilt, {"unet": frozenset(spoilt)}
    ladder.strays()
    assert ladder.climb(Asked()) == ("from the checkpoint's file", True) and is_clean(unet, clean)


def test_what_the_unload_spoils_is_seen_where_it_does_not_tell(host, ladder, unet, clean, compared):
    host.writes, host.tells = {"1.weight": clean["1.weight"], "2.bias": clean["2.bias"] + 1}, None
    ladder.strays()
    assert ladder.climb(Asked()) == ("from the checkpoint's file", True) and is_clean(unet, clean)
    assert compared == [set(clean), set(clean), {"2.bias"}, {"2.bias"}]


def test_a_weight_that_the_unload_takes_away_is_seen(host, ladder, unet, clean):
    host.tells = {"unet": frozenset({"1.weight", "1.bias"})}
    ladder.strays()
    unet[1].bias = None  # as AUTOMATIC1111 does it where it has no copy of one
    assert ladder.climb(Asked()) == ("from the checkpoint's file", True) and is_clean(unet, clean)


def test_an_unload_that_raises_may_have_been_anywhere(host, ladder, unet, clean, monkeypatch):
    def raises(strays):
        with torch.no_grad():
            unet[2].bias.add_(1)
        raise KeyError("a layer that it does not know")

    monkeypatch.setattr(host, "unload", raises)
    ladder.strays()
    assert ladder.climb(Asked()) == ("from the checkpoint's file", True) and is_clean(unet, clean)


def test_without_any_way_back_it_says_so(host, ladder, unet):
    for file in host.place.files:
        file.unlink()
    ladder.strays()
    told, proven = ladder.climb(Asked())
    assert not proven and told == "as far as it goes (model.safetensors is no longer the file that was loaded)"

"""A host's method that casts by a declaration: where the VAE contradicts it, the result is as if it were right."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from lib_guard.border import Border
from lib_guard.guards import GuardContext, PrecisionGuard
from lib_guard.hooks import marked
from lib_guard.hosts.base import Entry
from lib_guard.hosts.diffusers import vae_boundaries
from lib_guard.settings import Settings

HALF, FLOAT = torch.float16, torch.float32


class Wrapper:
    """Speaks to a VAE in the dtype that it believes it to be in."""

    def __init__(self, vae: nn.Module, declared: torch.dtype) -> None:
        self.vae, self.declared = vae, declared
        self.calls = 0

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.vae.decode(latents.to(self.declared), return_dict=False)[0].float()

    @torch.no_grad()
    def encode(self, picture: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        drawn = self.vae.encode(picture.to(self.declared), return_dict=False)[0]
        return drawn.sample().float()


class OneWrapper:
    """A host that has a wrapped VAE and nothing else."""

    title = "one wrapped VAE"

    def __init__(self, wrapper: Wrapper) -> None:
        self.wrapper = wrapper

    def boundaries(self):
        found = vae_boundaries(self.wrapper.vae)
        return [replace(boundary, entry=Entry(self.wrapper, boundary.direction, "declared")) for boundary in found]

    def arrivals(self):
        return ()

    def shields(self):
        return ()

    def left_behind(self, put_back):
        return ()

    def explain(self, finding):
        return finding


class Watched:
    """The guard on one wrapper, for the length of a `with`."""

    def __init__(self, wrapper: Wrapper, policy: str = "fix") -> None:
        self.wrapper, self.reports, self.own_failures = wrapper, [], []
        context = GuardContext(
            OneWrapper(wrapper),
            Settings(precision=policy),
            Border(self.own_failures.append),
            lambda finding, repair: self.reports.append((finding, repair)),
        )
        self.guard = PrecisionGuard(context)

    def __enter__(self) -> Watched:
        self.guard.attach()
        return self

    def __exit__(self, *raised: object) -> None:
        self.guard.detach()
        assert marked(self.wrapper) == marked(self.wrapper.vae) == []
        assert not {"encode", "decode"} & set(vars(self.wrapper))
        assert self.own_failures == []


def passed(direction: str) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(1, 4, 8, 8) if direction == "decode" else torch.rand(1, 3, 16, 16) * 2 - 1


def call(wrapper: Wrapper, direction: str) -> torch.Tensor:
    given = passed(direction)
    torch.manual_seed(2)
    return getattr(wrapper, direction)(given)


@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize(("weights", "declared"), [(FLOAT, HALF), (HALF, FLOAT), (FLOAT, torch.bfloat16)], ids=str)
def test_the_result_is_as_with_the_right_declaration(make_vae, weights, declared, direction):
    reference = call(Wrapper(make_vae().to(weights), weights), direction)
    wrapper = Wrapper(make_vae().to(weights), declared)
    with pytest.raises(RuntimeError, match="should be the same"):
        call(wrapper, direction)
    with Watched(wrapper) as watched:
        result = call(wrapper, direction)
    assert torch.equal(result, reference)
    assert wrapper.declared is declared, "put back"
    ((finding, repair),) = watched.reports
    assert finding.code == {"decode": "LG101", "encode": "LG102"}[direction]
    assert "called again with declared put right" in repair.did and repair.proof == "result finite"


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_without_a_contradiction_it_is_called_once_and_nothing_is_said(make_vae, direction):
    wrapper = Wrapper(make_vae(), FLOAT)
    reference = call(wrapper, direction)
    with Watched(wrapper) as watched:
        assert torch.equal(call(wrapper, direction), reference)
    assert wrapper.calls == 2 and watched.reports == []


def fitting(vae: nn.Module) -> nn.Module:
    """With layers that take whatever dtype they are given."""
    for module in vae.modules():
        if list(module.parameters(recurse=False)):
            module.register_forward_pre_hook(lambda module, args: (args[0].to(next(module.parameters()).dtype),))
    return vae


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_layers_that_fit_themselves_are_left_alone(make_vae, direction):
    """Unequal dtypes, and nothing raises: that is healthy, so not a bit may change."""
    wrapper = Wrapper(fitting(make_vae()), HALF)
    reference = call(wrapper, direction)
    with Watched(wrapper) as watched:
        assert torch.equal(call(wrapper, direction), reference)
    assert wrapper.calls == 2 and watched.reports == []


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_warn_says_it_and_lets_it_fail(make_vae, direction):
    wrapper = Wrapper(make_vae(), HALF)
    with Watched(wrapper, "warn") as watched, pytest.raises(RuntimeError, match="should be the same"):
        call(wrapper, direction)
    assert wrapper.calls == 1
    ((finding, repair),) = watched.reports
    assert finding.code in ("LG101", "LG102") and repair is None


def test_another_error_comes_out_once(make_vae):
    wrapper = Wrapper(fitting(make_vae()), HALF)
    with Watched(wrapper) as watched, pytest.raises(RuntimeError, match="channels"):
        wrapper.decode(torch.randn(1, 3, 8, 8))
    assert wrapper.calls == 1 and watched.reports == []


def test_an_error_of_the_second_call_comes_out_and_is_no_repair(make_vae):
    wrapper = Wrapper(make_vae(), HALF)
    with Watched(wrapper) as watched, pytest.raises(RuntimeError):
        wrapper.decode(torch.randn(1, 3, 8, 8))
    assert wrapper.declared is HALF
    assert all(repair is None for _, repair in watched.reports)


def test_what_somebody_else_declares_meanwhile_stays(make_vae):
    wrapper = Wrapper(make_vae(), HALF)

    def declare_anew(module: nn.Module, args: object) -> None:
        if wrapper.declared is FLOAT:
            wrapper.declared = torch.bfloat16

    wrapper.vae.decoder.register_forward_pre_hook(declare_anew)
    with Watched(wrapper):
        call(wrapper, "decode")
    assert wrapper.declared is torch.bfloat16

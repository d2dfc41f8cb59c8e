"""Attach and detach leave no trace, in whatever order several owners come and go."""

from __future__ import annotations

import inspect
import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lib_guard.hooks import MARK, Attachments, marked, sweep


class Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Linear(2, 2)

    def decode(self, z: torch.Tensor, return_dict: bool = True) -> torch.Tensor:
        """Decode."""
        return self.decoder(z)


def state(module: nn.Module) -> list[object]:
    """Everything that attaching could have left on a module tree."""
    return [
        (
            path,
            sorted(vars(m)),
            list(m._forward_hooks),
            list(m._forward_pre_hooks),
            dict(m._forward_hooks_always_called),
            dict(m._forward_hooks_with_kwargs),
            dict(m._forward_pre_hooks_with_kwargs),
            {k: id(v) for k, v in vars(m).items() if callable(v)},
        )
        for path, m in module.named_modules()
    ]


def attach_ours(vae: Vae, log: list[str]) -> Attachments:
    attachments = Attachments()

    def before(module, args, kwargs):
        log.append("before")

    def after(module, args, kwargs, output):
        log.append("after")

    def wrap(method):
        def call(*args, **kwargs):
            log.append("method")
            return method(*args, **kwargs)

        return call

    attachments.around(vae.decoder, before, after)
    attachments.method(vae, "decode", wrap)
    return attachments


def test_hooks_and_method_are_called_and_leave_no_trace():
    vae, log = Vae(), []
    before, signature = state(vae), inspect.signature(vae.decode)
    attachments = attach_ours(vae, log)
    assert inspect.signature(vae.decode) == signature and vae.decode.__name__ == "decode"
    vae.decode(torch.ones(2))
    assert log == ["method", "before", "after"] and len(marked(vae)) == 3
    attachments.detach()
    assert state(vae) == before and not marked(vae) and "decode" not in vars(vae)
    attachments.detach()
    assert state(vae) == before


def test_the_after_hook_runs_when_the_forward_raised():
    vae, log = Vae(), []
    attach_ours(vae, log)
    with pytest.raises(RuntimeError):
        vae.decode(torch.ones(3))
    assert log == ["method", "before", "after"]


def test_foreign_hooks_stay_outside_of_the_pair():
    vae, log = Vae(), []
    vae.decoder.register_forward_pre_hook(lambda *a: log.append("foreign before"))
    vae.decoder.register_forward_hook(lambda *a: log.append("foreign after"))
    attach_ours(vae, log)
    vae.decode(torch.ones(2))
    assert log == ["method", "foreign before", "before", "after", "foreign after"]


def test_an_instance_attribute_of_somebody_else_comes_back():
    """AUTOMATIC1111's lowvram.py:135 puts `encode` and `decode` on the VAE; deleting them would break offloading."""
    vae, log = Vae(), []
    theirs = vae.decode
    vae.decode = theirs
    attachments = attach_ours(vae, log)
    assert vae.decode is not theirs
    attachments.detach()
    assert vars(vae)["decode"] is theirs


class Foreign:
    """Another extension that wraps `decode` the careless way, and puts back what it found."""

    def __init__(self, vae: Vae) -> None:
        self.vae, self.had = vae, "decode" in vars(vae)
        self.before = vae.decode

    def attach(self) -> None:
        before = self.before = self.vae.decode
        self.had = "decode" in vars(self.vae)
        self.vae.decode = lambda *a, **k: before(*a, **k)

    def detach(self) -> None:
        if self.had:
            self.vae.decode = self.before
        else:
            vars(self.vae).pop("decode", None)


ORDERS = [
    order
    for order in itertools.permutations(["+us", "+them", "-us", "-them"])
    if order.index("+us") < order.index("-us") and order.index("+them") < order.index("-them")
]


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_every_order_of_coming_and_going_leaves_no_trace(order):
    vae, log = Vae(), []
    clean = state(vae)
    foreign, ours = Foreign(vae), None
    for step in order:
        if step == "+us":
            ours = attach_ours(vae, log)
        elif step == "-us":
            ours.detach()
        elif step == "+them":
            foreign.attach()
        else:
            foreign.detach()
    log.clear()
    # A wrapper of ours that they put back after we had gone takes itself away when it is called ...
    vae.decode(torch.ones(2))
    assert log == [] and state(vae) == clean


def test_a_wrapper_that_was_put_back_is_swept_away_too():
    vae = Vae()
    clean = state(vae)
    ours, foreign = attach_ours(vae, []), Foreign(vae)
    foreign.attach()
    ours.detach()
    foreign.detach()
    assert marked(vae) == [": decode"]
    assert sweep(vae) == 1 and state(vae) == clean


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_several_of_ours_go_in_any_order(order):
    vae, logs = Vae(), [[], [], []]
    clean = state(vae)
    several = [attach_ours(vae, log) for log in logs]
    for index in order:
        several[index].detach()
    vae.decode(torch.ones(2))
    assert state(vae) == clean and logs == [[], [], []]


def test_sweep_finds_what_a_reloaded_extension_left():
    vae = Vae()
    clean = state(vae)
    attach_ours(vae, [])
    assert sweep(vae) == 3 and state(vae) == clean
    assert all(not hasattr(value, MARK) for value in vars(vae).values())


def test_a_function_of_a_plain_object_is_replaced_found_and_swept():
    """What a host keeps in a Python module is no torch module, and LibGuard's mark on it must be found as well."""
    owner = SimpleNamespace(forward=lambda x: x)
    theirs = owner.forward
    attachments = Attachments()
    attachments.method(owner, "forward", lambda before: lambda x: before(x) + 1)
    assert owner.forward(1) == 2 and marked(owner) == [": forward"]
    assert sweep(owner) == 1 and owner.forward is theirs and marked(owner) == []


class Static:
    """With a method that is called on the class alone."""

    @staticmethod
    def given(number: int) -> int:
        """The number."""
        return number


def test_a_static_method_stays_one_and_comes_back_as_it_was():
    before = vars(Static)["given"]
    attachments = Attachments()
    attachments.method(Static, "given", lambda method: lambda number: method(number) + 1)
    assert Static.given(1) == Static().given(1) == 2 and marked(Static) == [": given"]
    attachments.detach()
    assert vars(Static)["given"] is before and Static().given(1) == 1 and marked(Static) == []


def test_a_static_method_is_swept():
    before = vars(Static)["given"]
    Attachments().method(Static, "given", lambda method: lambda number: -method(number))
    assert Static.given(1) == -1 and sweep(Static) == 1
    assert vars(Static)["given"] is before

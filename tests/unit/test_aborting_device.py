"""P15: devices that end the process for unequal dtypes instead of raising. The CPU stands in for MPS: only the device's
type is asked for, and a mode below LibGuard's ends the test where the driver would end the process."""

from __future__ import annotations

import pytest
import torch
from one_model import Guarded, OneModel
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lib_guard.hosts.base import Boundary
from lib_guard.hosts.diffusers import vae_boundaries
from lib_guard.settings import Settings
from lib_guard.tensors import reconcile
from lib_guard.tensors.reconcile import MATRIX_OPERATIONS, Reconcile

HALF, BF16, FLOAT = torch.float16, torch.bfloat16, torch.float32

pytestmark = pytest.mark.parametrize("row", ["P15-unit"])


class Aborted(BaseException):
    """No Exception, as the end of a process is none: nobody can catch it and go on."""


class Device(TorchFunctionMode):
    """Counts the matrix operations that reach it."""

    arrived = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in MATRIX_OPERATIONS:
            self.arrived += 1
            values = (*args, *(kwargs or {}).values())
            if len({v.dtype for v in values if isinstance(v, torch.Tensor) and v.is_floating_point()}) > 1:
                raise Aborted(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def an_aborting_cpu(monkeypatch):
    monkeypatch.setattr(reconcile, "ABORTING_DEVICES", frozenset({"cpu"}))


def mode(**kwargs) -> Reconcile:
    return Reconcile(lambda dtypes: None, lambda mismatch: None, **kwargs)


CALLS = {
    "linear": lambda a, b: F.linear(a, b),
    "linear with keywords": lambda a, b: F.linear(input=a, weight=b),
    "bias": lambda a, b: F.linear(a, a, b[0]),
    "matmul": lambda a, b: a @ b.T,
    "addmm": lambda a, b: torch.addmm(torch.zeros(4, 4, dtype=a.dtype), a, b.T),
    "conv2d": lambda a, b: F.conv2d(a[None, :, :, None], b[:, :, None, None]),
    "attention": lambda a, b: F.scaled_dot_product_attention(a[None], b[None], b[None]),
    "layer_norm": lambda a, b: F.layer_norm(a, (4,), b[0], b[1]),
    "group_norm": lambda a, b: F.group_norm(a, 2, b[0], b[1]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_every_operation_arrives_with_equal_dtypes_from_the_start(row, call):
    torch.manual_seed(0)
    a, b = torch.randn(4, 4).half(), torch.randn(4, 4)
    with Device(), pytest.raises(Aborted):
        call(a, b)
    with Device() as device, mode():
        result = call(a, b)
    assert device.arrived and torch.equal(result, call(a.float(), b))


def test_a_vae_that_lives_in_another_dtype_than_its_caller(row, make_vae):
    vae, latents = make_vae(), torch.randn(1, 4, 8, 8)
    with Device(), torch.no_grad(), pytest.raises(Aborted):
        vae.decode(latents.half())
    with Guarded(OneModel(lambda: vae_boundaries(vae))) as guarded, Device(), torch.no_grad():
        result = vae.decode(latents.half()).sample
        again = vae.decode(latents.half()).sample
    with torch.no_grad():
        assert torch.equal(result, vae.decode(latents.half().float()).sample) and torch.equal(again, result)
    assert guarded.codes == ["LG101", "LG101"] and guarded.reports[0][0].evidence["error"] == ""


class Encoder(nn.Module):
    """Two layers; the second one may stray."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.projection = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.projection(torch.nn.functional.silu(self.first(x)))


@pytest.mark.parametrize(("own", "stray", "given"), [(HALF, HALF, FLOAT), (HALF, BF16, HALF), (BF16, BF16, HALF)])
def test_a_component_that_strays_or_is_given_another_dtype(row, own, stray, given):
    component, x = Encoder().to(own), torch.randn(2, 4).to(given)
    component.projection.to(stray)
    with Device(), torch.no_grad(), pytest.raises(Aborted):
        component(x)
    with Guarded(OneModel(lambda: [Boundary("text_encoder", component)])) as guarded, Device(), torch.no_grad():
        # Each call, not only the first one: nothing can be learnt from a call that does not come back.
        results = [component(x) for _ in range(3)]
    assert all(result.dtype is given and torch.equal(result, results[0]) for result in results)
    assert set(guarded.codes) == {"LG112" if own is stray else "LG111"}


def test_a_mismatch_that_begins_in_mid_generation(row):
    """A ControlNet that is loaded later, or an extension that starts to cast: the component had passed before."""
    component = Encoder().half()
    with Guarded(OneModel(lambda: [Boundary("unet", component)])) as guarded, Device(), torch.no_grad():
        component(torch.randn(2, 4).half())
        component.projection.register_forward_pre_hook(lambda module, args: (args[0].float(),))
        assert component(torch.randn(2, 4).half()).dtype is HALF
    assert guarded.codes == ["LG113"]


def test_nothing_is_cast_where_nothing_differs(row, make_vae):
    vae, latents = make_vae().half(), torch.randn(1, 4, 8, 8).half()
    with torch.no_grad():
        expected = vae.decode(latents).sample
        with Guarded(OneModel(lambda: vae_boundaries(vae))) as guarded, Device():
            assert torch.equal(vae.decode(latents).sample, expected)
    assert guarded.reports == []


def test_warn_does_not_repair_here_either(row, make_vae):
    """The one policy under which such a device still ends the process: the user asked for nothing to be changed."""
    vae = make_vae()
    warning = Guarded(OneModel(lambda: vae_boundaries(vae)), settings=Settings(precision="warn"))
    with warning, Device(), torch.no_grad(), pytest.raises(Aborted):
        vae.decode(torch.randn(1, 4, 8, 8).half())

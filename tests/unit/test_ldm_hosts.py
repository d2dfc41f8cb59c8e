"""How the adapters of AUTOMATIC1111 and Forge find components, steps and LoRAs, on stand-ins of the hosts' objects;
tests/hosts/ has them on the running ones."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
from torch import nn

from lib_guard.hosts.a1111 import A1111Host
from lib_guard.hosts.forge import ForgeHost


def layer() -> nn.Module:
    return nn.Linear(2, 2)


def transformer() -> nn.Module:
    found = nn.Module()
    found.joint_blocks = nn.ModuleList([layer()])
    return found


@pytest.fixture
def loaded(monkeypatch):
    """Puts a model into a stand-in of the host's `modules.sd_models`."""

    def put(model: object) -> None:
        sd_models = ModuleType("modules.sd_models")
        sd_models.model_data = SimpleNamespace(sd_model=model)
        sd_models.reload_model_weights = sd_models.forge_model_reload = lambda: None
        modules = ModuleType("modules")
        modules.sd_models = sd_models
        monkeypatch.setitem(sys.modules, "modules", modules)
        monkeypatch.setitem(sys.modules, "modules.sd_models", sd_models)

    return put


def names(host) -> list[str]:
    return [boundary.component for boundary in host.boundaries()]


def test_a1111_stable_diffusion_1(loaded):
    model = SimpleNamespace(cond_stage_model=layer(), model=SimpleNamespace(diffusion_model=layer()))
    loaded(model)
    found = A1111Host().boundaries()
    assert [(one.component, one.owner) for one in found] == [
        ("text_encoder", model.cond_stage_model),
        ("unet", model.model.diffusion_model),
    ]


def test_a1111_sdxl_has_its_text_encoders_one_by_one(loaded):
    """What encodes size and crop holds no weights; `cond_stage_model` is the whole conditioner."""
    conditioner = nn.Module()
    conditioner.embedders = nn.ModuleList([layer(), layer(), nn.Identity()])
    loaded(SimpleNamespace(conditioner=conditioner, cond_stage_model=conditioner))
    assert names(A1111Host()) == ["text_encoder", "text_encoder_2"]


def test_a1111_stable_diffusion_3_has_a_transformer(loaded):
    loaded(SimpleNamespace(cond_stage_model=layer(), model=SimpleNamespace(diffusion_model=transformer())))
    assert names(A1111Host()) == ["text_encoder", "transformer"]


@pytest.mark.parametrize("host", [A1111Host, ForgeHost])
def test_without_a_model_there_is_nothing(loaded, host):
    loaded(None)
    assert names(host()) == []


@pytest.mark.parametrize("host", [A1111Host, ForgeHost])
def test_a_compiled_component_is_left_out(loaded, host):
    compiled = layer()
    compiled._compiled_call_impl = lambda *args: None
    clip = SimpleNamespace(cond_stage_model=nn.ModuleDict())
    objects = SimpleNamespace(
        vae=None, clip=clip, unet=SimpleNamespace(model=SimpleNamespace(diffusion_model=compiled))
    )
    loaded(SimpleNamespace(model=SimpleNamespace(diffusion_model=compiled), forge_objects_original=objects))
    assert names(host()) == []


def test_forge_names_what_its_wrappers_hold(loaded):
    clip = nn.ModuleDict({name: nn.ModuleDict({"transformer": layer()}) for name in ("clip_l", "t5xxl")})
    for one in clip.values():
        one.transformer = one["transformer"]
    unet = nn.Module()
    unet.input_blocks = nn.ModuleList([layer()])
    objects = SimpleNamespace(
        vae=None,
        clip=SimpleNamespace(cond_stage_model=clip),
        unet=SimpleNamespace(model=SimpleNamespace(diffusion_model=unet)),
    )
    loaded(SimpleNamespace(forge_objects_original=objects))
    assert names(ForgeHost()) == ["text_encoder", "text_encoder_2", "unet"]


@pytest.mark.parametrize(
    ("done", "calls", "steps", "expected"),
    [
        (0, 20, 20, (1, 20)),
        (3, 20, 20, (4, 20)),
        (39, 40, 20, (20, 20)),
        (40, 40, 20, (20, 20)),
        (0, None, None, (0, 0)),
    ],
)
def test_the_step_is_what_the_sampler_counts(done, calls, steps, expected):
    """Samplers of the second order call the UNet twice a step."""

    class Request:
        sampler = SimpleNamespace(model_wrap_cfg=SimpleNamespace(step=done, total_steps=calls, steps=steps))

    host, request = ForgeHost(), Request()
    assert host.step() == (0, 0)
    host.remember(request)
    assert host.step() == expected
    del request
    assert host.step() == (0, 0), "the request is not kept alive"


def test_the_loras_are_those_of_the_lora_extension(monkeypatch):
    assert ForgeHost().loras() == []
    networks = ModuleType("networks")
    networks.loaded_networks = [
        SimpleNamespace(name="red", network_on_disk=SimpleNamespace(filename="/some/where/red.safetensors"))
    ]
    monkeypatch.setitem(sys.modules, "networks", networks)
    ((name, path),) = ForgeHost().loras()
    assert name == "red" and path.name == "red.safetensors"


def test_what_exchanges_the_model_is_named(loaded):
    loaded(None)
    assert [arrival.name for arrival in A1111Host().arrivals()] == ["reload_model_weights"]
    assert [arrival.name for arrival in ForgeHost().arrivals()] == ["forge_model_reload"]

"""What the adapter for SD.Next can be asked without the host, and how a pipeline's components are found;
tests/hosts/ has the rest, on the running one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lib_guard.findings import Finding
from lib_guard.hosts.base import VaeBoundary
from lib_guard.hosts.detect import find_adapter
from lib_guard.hosts.diffusers import pipeline_boundaries
from lib_guard.hosts.sdnext import SdNextHost

OWN = ("modules/modeldata.py", "installer.py", "webui.py")


class Part(torch.nn.Module):
    def __init__(self, **inner: object) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        for name, value in inner.items():
            setattr(self, name, value)

    def forward(self, x):
        return x

    def decode(self, x):
        return x


def names(pipe: object) -> list[str]:
    return [one.component for one in pipeline_boundaries(pipe)]


def owners(pipe: object) -> dict[str, torch.nn.Module]:
    return {one.component: one.owner for one in pipeline_boundaries(pipe)}


def test_components_go_by_their_own_names_in_the_order_of_a_generation():
    given = ("vae", "transformer_2", "transformer", "text_encoder_3", "text_encoder", "text_encoder_2", "tokenizer")
    pipe = SimpleNamespace(**{name: Part() for name in given}, scheduler=object(), image_encoder=None)
    assert names(pipe) == ["text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "transformer_2"]


def test_the_vae_has_its_directions():
    pipe = SimpleNamespace(unet=Part(), vae=Part(decoder=Part()))
    found = pipeline_boundaries(pipe)
    assert [type(one) is VaeBoundary for one in found] == [False, True]


@pytest.mark.parametrize("pipe", [None, object(), SimpleNamespace(), 7])
def test_what_is_no_pipeline_has_none(pipe):
    assert pipeline_boundaries(pipe) == []


def test_a_pipeline_inside_another_has_what_that_one_lacks():
    inner = SimpleNamespace(unet=Part(), text_encoder=Part(), vae=Part(decoder=Part()))
    outer = SimpleNamespace(pipe=inner, text_encoder=Part(), vae=None)
    found = owners(outer)
    assert found["text_encoder"] is outer.text_encoder and found["unet"] is inner.unet and found["vae"] is inner.vae


@pytest.mark.parametrize(("kind", "held"), [("controlnet", "nets"), ("adapter", "adapters")])
def test_of_a_container_the_members_are_named(kind, held):
    """It calls them one by one, and each may be of another precision."""
    members = torch.nn.ModuleList([Part(), Part()])
    found = owners(SimpleNamespace(**{kind: Part(**{held: members})}))
    assert found == {kind: members[0], f"{kind}_2": members[1]}


def test_the_same_part_twice_is_named_once():
    part = Part()
    assert names(SimpleNamespace(controlnet=[part, part], text_encoder=part)) == ["text_encoder"]


def test_image_projections_are_found_inside_the_unet():
    layers = torch.nn.ModuleList([Part(), Part()])
    unet = Part(encoder_hid_proj=Part(image_projection_layers=layers))
    assert owners(SimpleNamespace(unet=unet)) == {
        "image_projection": layers[0],
        "image_projection_2": layers[1],
        "unet": unet,
    }


def test_a_projection_of_text_is_none_of_images():
    """Kolors keeps its text projection under the same name."""
    assert names(SimpleNamespace(unet=Part(encoder_hid_proj=torch.nn.Linear(2, 2)))) == ["unet"]


def test_sd3_has_one_projection():
    transformer = Part(image_proj=Part())
    assert owners(SimpleNamespace(transformer=transformer))["image_projection"] is transformer.image_proj


def test_compiled_components_are_left_out():
    unet = Part(inner=Part())
    unet.inner.compile(backend="eager")
    assert names(SimpleNamespace(unet=unet, text_encoder=Part())) == ["text_encoder"]


# The adapter.


def test_its_folder_is_known(tmp_path):
    for name in OWN:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_adapter(tmp_path) is SdNextHost


class Chosen(SdNextHost):
    """With these settings."""

    def __init__(self, values: dict[str, object]) -> None:
        super().__init__()
        self._values = values

    def options(self):
        return self._values


def explained(code: str, component: str = "vae", direction: str = "decode", *, cause: str = "", **settings: object):
    evidence = settings.pop("evidence", {})
    return Chosen(settings).explain(Finding(code, "precision", component, direction, "", evidence, cause))


def test_a_part_that_a_setting_put_in_is_named():
    found = explained("LG111", "text_encoder_2", "", sd_text_encoder="ViT-L.safetensors")
    assert '"Text encoder model" is "ViT-L.safetensors"' in found.cause and "Reload model" in found.permanent_fix


@pytest.mark.parametrize("component", ["text_encoder", "unet", "image_encoder"])
def test_without_such_a_setting_the_model_is_to_be_loaded_again(component):
    found = explained("LG111", component, "", sd_text_encoder="Default", sd_unet="Default")
    assert not found.cause and "Reload model" in found.permanent_fix


def test_an_extension_that_is_to_blame_stays_so():
    assert explained("LG111", "unet", "", cause="The extension x.", sd_unet="y").cause == "The extension x."


@pytest.mark.parametrize("component", ["controlnet", "controlnet_2", "adapter"])
def test_control_units_keep_the_precision_of_the_start(component):
    found = explained("LG112", component, "")
    assert "started with" in found.cause and '"Device precision type"' in found.permanent_fix


@pytest.mark.parametrize(
    ("direction", "settings", "fix"),
    [
        ("decode", {"diffusers_vae_upcast": "false"}, '"VAE upcasting" "true"'),
        ("decode", {}, '"VAE upcasting" "true"'),
        ("encode", {}, '"BF16" or "FP32"'),
    ],
)
def test_an_overflow_has_the_setting_that_reaches_it(direction, settings, fix):
    """SD.Next upcasts to decode only."""
    found = explained("LG201", direction=direction, evidence={"dtype": "float16"}, **settings)
    assert fix in found.permanent_fix
    assert ('"VAE upcasting" is "false"' in found.cause) == bool(settings)


def test_a_latent_that_a_lora_broke_needs_no_other_precision():
    assert explained("LG202", "latent", evidence={"loras": "x"}, cuda_dtype="FP16").permanent_fix == ""
    assert '"BF16"' in explained("LG202", "latent", cuda_dtype="FP16").permanent_fix


def test_a_broken_vae_is_named_by_its_setting():
    assert '"VAE model" is "other.safetensors"' in explained("LG203", sd_vae="other.safetensors").permanent_fix


def test_a_quantized_vae_is_told_from_patched_layers():
    evidence = {"component": "float32"}
    assert "quantized" in explained("LG104", evidence=evidence, sdnq_quantize_weights=["VAE"]).cause
    assert explained("LG104", evidence=evidence, sdnq_quantize_weights=["Model"]).cause == ""

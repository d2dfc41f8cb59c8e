"""How the adapter for Forge pairs IP-Adapters and image encoders, on stand-ins of the host's objects;
tests/hosts/ has the running one."""

from __future__ import annotations

import sys
import weakref
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
from live_models import named, on_meta
from test_family import write
from torch import nn

from lib_guard.files.families import EncoderNeed
from lib_guard.files.families.verdict import EMBEDS, HIDDEN, INSIGHTFACE, VIT_BIGG, VIT_H
from lib_guard.hosts import forge_encoder
from lib_guard.hosts.forge_encoder import ForgeUnitEncoders

H, BIGG, FACE, INSTANT = (
    "CLIP-ViT-H (IPAdapter)",
    "CLIP-ViT-bigG (IPAdapter)",
    "InsightFace+CLIP-H (IPAdapter)",
    "InsightFace (InstantID)",
)
ADDRESS = "https://huggingface.co/h94/IP-Adapter/resolve/main/{}/image_encoder/model.safetensors"
KEYS = {"ip_adapter.1.to_k_ip.weight": (320, 768), "ip_adapter.1.to_v_ip.weight": (320, 768)}
FACEID = {"proj.0.weight": (1024, 512), "proj.2.weight": (3072, 1024), "norm.weight": (768,)}
ADAPTERS = {
    "base": {"proj.weight": (3072, 1024), "norm.weight": (768,)},
    "vit-g": {"proj.weight": (3072, 1280), "norm.weight": (768,)},
    "plus": {"latents": (1, 16, 768), "proj_in.weight": (768, 1280), "proj_out.weight": (768, 768)},
    "faceid": FACEID,
    "faceid-plus": {**FACEID, "perceiver_resampler.proj_in.weight": (768, 1280)},
    "instant-id": {"latents": (1, 16, 768), "proj_in.weight": (1280, 512), "proj_out.weight": (768, 768)},
}
NEEDS_H, NEEDS_BIGG = EncoderNeed(VIT_H, 1024, EMBEDS), EncoderNeed(VIT_BIGG, 1280, EMBEDS)
NEEDS_FACE, NEEDS_BOTH = EncoderNeed(INSIGHTFACE, 512, EMBEDS), EncoderNeed(VIT_H, 1280, HIDDEN, face=True)


class Clip:
    """A loaded encoder, in a circle with its patcher as the host's is."""

    def __init__(self, hidden: int, width: int) -> None:
        layers = {
            "vision_model.embeddings.patch_embedding": nn.Conv2d(3, hidden, 14, 14, bias=False),
            "visual_projection": nn.Linear(hidden, width, bias=False),
        }
        self.model = named(layers)
        self.patcher = SimpleNamespace(model=self.model)
        self.model.patcher = self.patcher


class Vision:
    """PreprocessorClipVisionForIPAdapter; nothing may ask it to load."""

    global_cache: ClassVar[dict[str, Clip]] = {}

    def __init__(self, name: str, url: str, filename: str, tag: str = "IP-Adapter") -> None:
        self.name, self.url, self.filename, self.tags = name, url, filename, [tag]
        self.clipvision: Clip | None = None
        self.model_patcher = None


class FaceVision(Vision):
    """PreprocessorClipVisionWithInsightFaceForIPAdapter."""

    cached_insightface = None


class Host:
    """The modules of Forge that are asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = {"None": "model.safetensors"}
        self.off_device: list[int] = []
        h, bigg = ADDRESS.format("models"), ADDRESS.format("sdxl_models")
        self.add(Vision(H, h, "CLIP-ViT-H-14.safetensors"))
        self.add(Vision(BIGG, bigg, "CLIP-ViT-bigG.safetensors"))
        self.add(FaceVision(FACE, h, "CLIP-ViT-H-14.safetensors"))
        self.add(SimpleNamespace(name=INSTANT, tags=["Instant-ID"], cached_insightface=None))
        self.add(Vision("CLIP-G (Revision)", bigg, "CLIP-ViT-bigG.safetensors", "Revision"))
        self.add(SimpleNamespace(name="canny", tags=["Canny"]))

    preprocessors: dict[str, object]

    def add(self, one: object) -> None:
        self.preprocessors = {**getattr(self, "preprocessors", {}), one.name: one}

    def adapter(self, name: str) -> str:
        """A file, by the name that a unit has for it."""
        image = {f"image_proj.{part}": shape for part, shape in ADAPTERS[name].items()}
        (self.folder / name).mkdir()
        self.files[f"{name} [1234]"] = str(write(self.folder / name, {**image, **KEYS}))
        return f"{name} [1234]"

    def encoder(self, filename: str, hidden: int, width: int) -> None:
        """An encoder's file."""
        shapes = {
            "vision_model.embeddings.patch_embedding.weight": (hidden, 3, 14, 14),
            "vision_model.embeddings.position_embedding.weight": (257, hidden),
            "vision_model.encoder.layers.0.layer_norm1.weight": (hidden,),
            "visual_projection.weight": (width, hidden),
        }
        (self.folder / str(hidden)).mkdir(exist_ok=True)
        write(self.folder / str(hidden), shapes).replace(self.folder / filename)

    def take_off_device(self, patcher: SimpleNamespace) -> None:
        parts = patcher.model.parameters()
        self.off_device.append(sum(part.numel() * part.element_size() for part in parts))

    def load(self, name: str, hidden: int, width: int) -> Clip:
        """Have a preprocessor load its encoder as the host does."""
        one = self.preprocessors[name]
        path = str(self.folder / one.filename)
        one.clipvision = one.global_cache.setdefault(path, Clip(hidden, width))
        return one.clipvision


@pytest.fixture
def host(monkeypatch, tmp_path):
    made = Host(tmp_path)
    shared, state, memory = (ModuleType(name) for name in ("shared", "state", "memory"))
    shared.supported_preprocessors, shared.preprocessor_dir = made.preprocessors, str(tmp_path)
    state.controlnet_filename_dict = made.files
    memory.unload_model_clones, memory.soft_empty_cache = made.take_off_device, lambda: None
    monkeypatch.setitem(sys.modules, "modules_forge.shared", shared)
    monkeypatch.setitem(sys.modules, "lib_controlnet.global_state", state)
    monkeypatch.setitem(sys.modules, "backend.memory_management", memory)
    monkeypatch.setattr(Vision, "global_cache", {})
    monkeypatch.setattr(forge_encoder, "_finds_faces", lambda: True)
    yield made
    forge_encoder._remembered.cache_clear()


@pytest.fixture
def both_files(host):
    host.encoder("CLIP-ViT-H-14.safetensors", 1280, 1024)
    host.encoder("CLIP-ViT-bigG.safetensors", 1664, 1280)
    return host


def unit(module: str, model: str, **more: object) -> SimpleNamespace:
    return SimpleNamespace(module=module, model=model, **more)


def paired(host: Host, module: str, name: str) -> tuple[str | None, bool, bool | None]:
    """The kind of encoder, whether a face counts, and whether it is what the adapter takes."""
    pair = ForgeUnitEncoders().pair(unit(module, host.adapter(name)))
    need = forge_encoder._verdict(pair.adapter.file).need
    kind = pair.offer.kind if pair.offer is not None else None
    met = pair.offer is not None and need.met_by(pair.offer) and pair.face == need.face
    return kind, pair.face, met


@pytest.mark.parametrize(
    ("module", "name", "expected"),
    [
        (H, "base", (VIT_H, False, True)),
        (BIGG, "base", (VIT_BIGG, False, False)),
        (BIGG, "vit-g", (VIT_BIGG, False, True)),
        (H, "vit-g", (VIT_H, False, False)),
        (H, "plus", (VIT_H, False, True)),
        (BIGG, "plus", (VIT_BIGG, False, False)),
        # One preprocessor gives CLIP and a face, and each adapter takes what it needs of that.
        (FACE, "base", (VIT_H, False, True)),
        (FACE, "faceid", (INSIGHTFACE, False, True)),
        (FACE, "faceid-plus", (VIT_H, True, True)),
        (FACE, "vit-g", (VIT_H, False, False)),
        (H, "faceid", (VIT_H, False, False)),
        (H, "faceid-plus", (VIT_H, False, False)),
        (INSTANT, "base", (INSIGHTFACE, False, False)),
    ],
)
def test_pairs(both_files, module, name, expected):
    assert paired(both_files, module, name) == expected


@pytest.mark.parametrize(
    ("module", "name"), [("canny", "base"), (INSTANT, "instant-id"), (FACE, "instant-id"), ("who?", "base")]
)
def test_what_is_no_pair(both_files, module, name):
    assert ForgeUnitEncoders().pair(unit(module, both_files.adapter(name))) is None


@pytest.mark.parametrize("name", ["None", "gone [1234]"])
def test_a_unit_without_an_adapter_is_no_pair(both_files, name):
    assert ForgeUnitEncoders().pair(unit(H, name)) is None


def test_a_preview_is_used_without_the_preprocessor(both_files):
    name = both_files.adapter("base")
    assert ForgeUnitEncoders().pair(unit(BIGG, name, use_preview_as_input=True)) is None


def test_tensors_are_believed_and_names_are_not(host):
    """A ViT-bigG in ViT-H's file (cubiq/ComfyUI_IPAdapter_plus #752)."""
    host.encoder("CLIP-ViT-H-14.safetensors", 1664, 1280)
    assert paired(host, H, "base") == (VIT_BIGG, False, False)
    encoders = ForgeUnitEncoders()
    assert encoders.preprocessor_for(NEEDS_H) is None and encoders.preprocessor_for(NEEDS_BIGG) == H


def test_what_is_loaded_is_used_whatever_the_file_has_become(both_files):
    both_files.load(H, 1280, 1024)
    both_files.encoder("CLIP-ViT-H-14.safetensors", 1664, 1280)
    assert paired(both_files, H, "base")[0] == VIT_H
    assert paired(both_files, FACE, "plus")[0] == VIT_H, "another preprocessor of this file would use it too"


def test_without_a_file_it_is_what_would_be_downloaded(host):
    assert [paired(host, module, name)[0] for module, name in ((H, "base"), (BIGG, "plus"))] == [VIT_H, VIT_BIGG]


def test_a_file_that_cannot_be_read_is_not_judged(host):
    (host.folder / "CLIP-ViT-H-14.safetensors").write_bytes(b"<html>")
    assert paired(host, H, "base")[0] is None
    assert ForgeUnitEncoders().preprocessor_for(NEEDS_H) is None


def test_the_preprocessor_for_a_need(both_files):
    found = [ForgeUnitEncoders().preprocessor_for(need) for need in (NEEDS_H, NEEDS_BIGG, NEEDS_FACE, NEEDS_BOTH)]
    assert found == [H, BIGG, FACE, FACE]


def test_none_whose_encoder_is_not_on_disk(host):
    host.encoder("CLIP-ViT-bigG.safetensors", 1664, 1280)
    found = [ForgeUnitEncoders().preprocessor_for(need) for need in (NEEDS_H, NEEDS_BIGG, NEEDS_FACE, NEEDS_BOTH)]
    assert found == [None, BIGG, None, None]


def test_none_for_faces_where_insightface_is_not_whole(both_files, monkeypatch):
    monkeypatch.setattr(forge_encoder, "_finds_faces", lambda: False)
    found = [ForgeUnitEncoders().preprocessor_for(need) for need in (NEEDS_H, NEEDS_FACE, NEEDS_BOTH)]
    assert found == [H, None, None]


def test_the_encoder_that_adapters_were_trained_on_goes_first(both_files):
    """reForge has one more of the same build, tuned to faces, ahead of it; it asks preprocessors' names for faces."""
    ostris = "https://huggingface.co/ostris/CLIP-H-Face-v3/resolve/main/model.safetensors"
    before = dict(both_files.preprocessors)
    both_files.preprocessors.clear()
    for name in ("CLIP-H-Face (Ostris) (IPAdapter)", "InsightFace+CLIP-H-Face (Ostris) (IPAdapter)"):
        both_files.preprocessors[name] = Vision(name, ostris, "CLIP-H-Face-v3.safetensors")
    both_files.preprocessors.update(before)
    both_files.encoder("CLIP-H-Face-v3.safetensors", 1280, 1024)
    encoders = ForgeUnitEncoders()
    assert encoders.preprocessor_for(NEEDS_H) == H
    (both_files.folder / "CLIP-ViT-H-14.safetensors").unlink()
    assert encoders.preprocessor_for(NEEDS_H) == "CLIP-H-Face (Ostris) (IPAdapter)"
    assert encoders.preprocessor_for(NEEDS_BOTH) == "InsightFace+CLIP-H-Face (Ostris) (IPAdapter)"


def test_reforge_has_one_that_looks_for_faces_alone(host):
    name = "InsightFace (IPAdapter) (Portrait)"
    host.preprocessors[name] = Vision(name, "", "")
    assert paired(host, name, "faceid") == (INSIGHTFACE, False, True)
    assert paired(host, name, "base") == (INSIGHTFACE, False, False)
    assert ForgeUnitEncoders().preprocessor_for(NEEDS_FACE) == name


def test_a_unit_is_copied(host):
    before = unit(BIGG, "base", weight=0.5)
    after = ForgeUnitEncoders().with_preprocessor(before, H, None)
    assert (before.module, after.module, after.weight) == (BIGG, H, 0.5)


# Letting go.


def pairs_of(host: Host, *modules: str) -> list[object]:
    names = {H: "base", FACE: "plus", BIGG: "vit-g"}
    return [ForgeUnitEncoders().pair(unit(module, host.adapter(names[module]))) for module in modules]


def loaded_bigg(host: Host) -> weakref.ref[nn.Module]:
    return weakref.ref(host.load(BIGG, 1664, 1280).model)


def test_the_other_encoder_is_freed(both_files):
    kept, other = both_files.load(H, 1280, 1024), loaded_bigg(both_files)
    size = sum(part.numel() * part.element_size() for part in other().parameters())
    freed = dict(ForgeUnitEncoders().unload_others(pairs_of(both_files, H)))
    assert freed == {"OpenCLIP ViT-bigG (CLIP-ViT-bigG.safetensors)": size} and other() is None
    assert both_files.off_device == [size], "the host still lists it as loaded"
    assert list(Vision.global_cache.values()) == [kept] and both_files.preprocessors[H].clipvision is kept
    del kept
    freed = ForgeUnitEncoders().unload_others(pairs_of(both_files, BIGG))
    assert list(freed) == ["OpenCLIP ViT-H (CLIP-ViT-H-14.safetensors)"] and Vision.global_cache == {}


def test_what_somebody_else_holds_is_not_said_to_be_freed(both_files):
    held = both_files.load(BIGG, 1664, 1280)
    assert not ForgeUnitEncoders().unload_others(pairs_of(both_files, H))
    assert held.model is not None and both_files.preprocessors[BIGG].clipvision is None


def test_within_a_family_nothing_is_let_go_of(both_files):
    """Two preprocessors of one file have one encoder."""
    kept = both_files.load(H, 1280, 1024)
    assert not ForgeUnitEncoders().unload_others(pairs_of(both_files, FACE))
    assert both_files.preprocessors[H].clipvision is kept


def test_two_families_in_one_request_stay(both_files):
    both_files.load(H, 1280, 1024)
    both_files.load(BIGG, 1664, 1280)
    assert not ForgeUnitEncoders().unload_others(pairs_of(both_files, H, BIGG))
    assert len(Vision.global_cache) == 2


def test_what_revision_holds_stays(both_files):
    both_files.load(H, 1280, 1024)
    kept = both_files.load("CLIP-G (Revision)", 1664, 1280)
    both_files.load(BIGG, 1664, 1280)
    assert not ForgeUnitEncoders().unload_others(pairs_of(both_files, H))
    assert both_files.preprocessors[BIGG].clipvision is kept


# The request and the model.


def test_the_script_is_found_by_its_class():
    script = type("ControlNetForForgeOfficial", (), {"get_enabled_units": lambda self, units: units})()
    request = SimpleNamespace(scripts=SimpleNamespace(alwayson_scripts=[object(), script]))
    assert ForgeUnitEncoders().units(request) == (script, "get_enabled_units")


@pytest.mark.parametrize("scripts", [None, SimpleNamespace(alwayson_scripts=[object()])])
def test_a_request_without_controlnet(scripts):
    assert ForgeUnitEncoders().units(SimpleNamespace(scripts=scripts)) is None


@pytest.mark.parametrize("width", [768, 2048, None])
def test_the_texts_width_is_the_models(monkeypatch, width):
    widths = {"attn1": 320, **({"attn2": width} if width else {})}
    unet = on_meta(lambda: named({f"blocks.1.{name}.to_k": nn.Linear(one, 320) for name, one in widths.items()}))
    model = SimpleNamespace(diffusion_model=unet)
    objects = SimpleNamespace(unet=SimpleNamespace(model=model))
    sd_models = ModuleType("modules.sd_models")
    sd_models.model_data = SimpleNamespace(sd_model=SimpleNamespace(forge_objects_original=objects))
    modules = ModuleType("modules")
    modules.sd_models = sd_models
    monkeypatch.setitem(sys.modules, "modules", modules)
    monkeypatch.setitem(sys.modules, "modules.sd_models", sd_models)
    assert ForgeUnitEncoders().text_width() == width
    sd_models.model_data.sd_model = None
    assert ForgeUnitEncoders().text_width() is None

"""How the adapter for AUTOMATIC1111 pairs IP-Adapters and image encoders, on stand-ins of sd-webui-controlnet's
objects; tests/hosts/ has the running one."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
from live_models import named, on_meta
from test_family import write
from torch import nn

from lib_guard.files.families import EncoderNeed
from lib_guard.files.families.verdict import EMBEDS, HIDDEN, INSIGHTFACE, UNKNOWN, VIT_BIGG, VIT_H, VIT_L
from lib_guard.hooks import Attachments, marked
from lib_guard.hosts import a1111_encoder
from lib_guard.hosts.a1111_encoder import A1111UnitEncoders

H, G, H_AGAIN = "ip-adapter_clip_h", "ip-adapter_clip_g", "ip-adapter_clip_sdxl_plus_vith"
FACE, BOTH, AUTO = "ip-adapter_face_id", "ip-adapter_face_id_plus", "ip-adapter-auto"
KEYS = {"ip_adapter.1.to_k_ip.weight": (320, 768), "ip_adapter.1.to_v_ip.weight": (320, 768)}
FACEID = {"proj.0.weight": (1024, 512), "proj.2.weight": (3072, 1024), "norm.weight": (768,)}
PLAIN_H, PLAIN_G = {"proj.weight": (3072, 1024)}, {"proj.weight": (3072, 1280)}
ADAPTERS = {
    "base": PLAIN_H,
    "vit-g": PLAIN_G,
    "plus": {"latents": (1, 16, 768), "proj_in.weight": (768, 1280), "proj_out.weight": (768, 768)},
    "faceid": FACEID,
    "faceid-plus": {**FACEID, "perceiver_resampler.proj_in.weight": (768, 1280)},
    # The extension goes by these names, and builds what they say.
    "my-face": FACEID,
    "faceid-not": PLAIN_H,
    "instant_id": {"latents": (1, 16, 768), "proj_in.weight": (1280, 512), "proj_out.weight": (768, 768)},
    "PuLID": {"mapping_0.0.weight": (1024, 1024)},
}
#: What the automatic choice knows by name.
PRESETS = {"base": H, "vit-g": H, "PuLID": "ip-adapter_pulid"}
NEEDS_H, NEEDS_G = EncoderNeed(VIT_H, 1024, EMBEDS), EncoderNeed(VIT_BIGG, 1280, EMBEDS)
NEEDS_FACE, NEEDS_BOTH = EncoderNeed(INSIGHTFACE, 512, EMBEDS), EncoderNeed(VIT_H, 1280, HIDDEN, face=True)


def clip(img, config="clip_vitl", **more):
    raise AssertionError("nothing may be encoded")


def face_id_plus(img, **more):
    raise AssertionError("nothing may be encoded")


class InsightFaceModel:
    def run_model(self, img, **more):
        raise AssertionError("nothing may be encoded")

    def run_model_instant_id(self, img, **more):
        raise AssertionError("nothing may be encoded")


class Preprocessor:
    all_processors: ClassVar[dict[str, object]] = {}
    all_processors_by_name: ClassVar[dict[str, object]] = {}

    def __init__(self, label, call=None, tag="IP-Adapter", name="", without_model=False):
        self.label, self.name, self.tags, self.do_not_need_model = label, name or label, [tag], without_model
        if call is not None:
            self.call_function = call

    @classmethod
    def get_preprocessor(cls, name):
        return cls.all_processors.get(name, cls.all_processors_by_name.get(name))


class Auto(Preprocessor):
    @staticmethod
    def get_preprocessor_by_model(model):
        name = model.split("[")[0].strip()
        assert name in PRESETS, f"{name} not found in ipadapter presets."
        return Preprocessor.get_preprocessor(PRESETS[name])


class Unit(SimpleNamespace):
    """ControlNetUnit, as far as it is asked."""

    def serialize(self):
        return f"Module: {self.module}, Model: {self.model}, Weight: {self.weight}"


def unit(module, model, **more):
    return Unit(**{"module": module, "model": model, "weight": 1.0, "ipadapter_input": None, **more})


class Script:
    """The extension's, whose units are a static method."""

    model_cache: ClassVar[dict[str, object]] = {}

    def title(self):
        return "ControlNet"

    @staticmethod
    def get_enabled_units(p):
        return list(p.units)


class Host:
    """What the extension has in memory and on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, str | None] = {"None": None}
        self.names: dict[str, str] = {}
        self.clip_encoder: dict[str, object] = {"clip_g": None, "clip_h": None, "clip_vitl": None}

    def adapter(self, name: str) -> str:
        """A file, by the name that a unit has for it."""
        image = {f"image_proj.{part}": shape for part, shape in ADAPTERS[name].items()}
        written = write(self.folder, {**image, **KEYS})
        return self.lay(written.replace(self.folder / f"{name}.safetensors"))

    def lay(self, file: Path) -> str:
        listed = f"{file.stem} [1234]"
        self.files[listed], self.names[file.stem.lower()] = str(file), listed
        return listed

    def encoder(self, *configs: str) -> None:
        """Their files, of which nothing may be read."""
        (self.folder / "clip_vision").mkdir(exist_ok=True)
        for config in configs:
            (self.folder / "clip_vision" / f"{config}.pth").write_bytes(b"not a pickle")

    def load(self, config: str, hidden: int, width: int) -> None:
        layers = {
            "vision_model.embeddings.patch_embedding": nn.Conv2d(3, hidden, 14, 14, bias=False),
            "visual_projection": nn.Linear(hidden, width, bias=False),
        }
        self.clip_encoder[config] = SimpleNamespace(model=named(layers))


def preprocessors():
    faces, others = InsightFaceModel(), InsightFaceModel()
    yield Auto(AUTO)
    yield Preprocessor(H, partial(clip, config="clip_h"), name="ip-adapter_clip_sd15")
    yield Preprocessor(G, partial(clip, config="clip_g"), name="ip-adapter_clip_sdxl")
    yield Preprocessor(H_AGAIN, partial(clip, config="clip_h"))
    yield Preprocessor(FACE, faces.run_model)
    yield Preprocessor(BOTH, face_id_plus)
    yield Preprocessor("ip-adapter_pulid")
    yield Preprocessor("instant_id_face_embedding", partial(others.run_model_instant_id), "Instant-ID")
    yield Preprocessor("revision_clipvision", partial(clip, config="clip_g"), "Revision", without_model=True)
    yield Preprocessor("t2ia_style_clipvision", partial(clip, config="clip_vitl"), "T2I-Adapter", "clip_vision")
    yield Preprocessor("openpose", partial(InsightFaceModel().run_model), "OpenPose")


@pytest.fixture
def host(monkeypatch, tmp_path_factory):
    # Not `tmp_path`, whose name holds the test's: the extension asks the whole path for `faceid`.
    made = Host(tmp_path_factory.mktemp("models"))
    names = ("preprocessor", "state", "processor", "path")
    supported, state, processor, path = (ModuleType(name) for name in names)
    supported.Preprocessor, processor.clip_encoder = Preprocessor, made.clip_encoder
    state.cn_models, state.cn_models_names, path.models_path = made.files, made.names, str(made.folder)
    monkeypatch.setitem(sys.modules, "scripts.supported_preprocessor", supported)
    monkeypatch.setitem(sys.modules, "scripts.global_state", state)
    monkeypatch.setitem(sys.modules, "scripts.preprocessor.legacy.processor", processor)
    monkeypatch.setitem(sys.modules, "annotator.annotator_path", path)
    held = list(preprocessors())
    monkeypatch.setattr(Preprocessor, "all_processors", {one.label: one for one in held})
    monkeypatch.setattr(Preprocessor, "all_processors_by_name", {one.name: one for one in held})
    monkeypatch.setattr(Script, "model_cache", {})
    monkeypatch.setattr(a1111_encoder, "_finds_faces", lambda: True)
    yield made
    a1111_encoder._remembered.cache_clear()


@pytest.mark.parametrize(
    ("module", "name", "expected"),
    [
        (H, "base", (VIT_H, False)),
        ("ip-adapter_clip_sdxl", "base", (VIT_BIGG, False)),
        (H_AGAIN, "plus", (VIT_H, False)),
        ("clip_vision", "base", (VIT_L, False)),
        (FACE, "base", (INSIGHTFACE, False)),
        (FACE, "faceid", (INSIGHTFACE, False)),
        (BOTH, "faceid-plus", (VIT_H, True)),
        (BOTH, "base", (VIT_H, True)),
        # What it comes to, by the file's name.
        (AUTO, "base", (VIT_H, False)),
        (AUTO, "vit-g", (VIT_H, False)),
        # It will raise.
        (AUTO, "plus", (UNKNOWN, False)),
    ],
)
def test_pairs(host, module, name, expected):
    pair = A1111UnitEncoders().pair(unit(module, host.adapter(name)))
    assert (pair.offer.kind, pair.face) == expected
    assert pair.preprocessor == module and pair.adapter.file == host.folder / f"{name}.safetensors"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("openpose", "base"),
        ("who?", "base"),
        ("revision_clipvision", "base"),
        ("ip-adapter_pulid", "PuLID"),
        (AUTO, "PuLID"),
        (H, "PuLID"),
        ("instant_id_face_embedding", "instant_id"),
        (FACE, "instant_id"),
        # The extension builds something else of them, whatever the preprocessor is.
        (H, "my-face"),
        (AUTO, "my-face"),
        (G, "faceid-not"),
    ],
)
def test_what_is_no_pair(host, module, name):
    assert A1111UnitEncoders().pair(unit(module, host.adapter(name))) is None


@pytest.mark.parametrize("model", ["None", "", "gone [1234]"])
def test_a_unit_without_an_adapter_is_no_pair(host, model):
    host.adapter("base")
    host.lay(host.folder / "a-none.safetensors")
    assert A1111UnitEncoders().pair(unit(H, model)) is None


def test_a_unit_that_brings_an_embedding_is_no_pair(host):
    assert A1111UnitEncoders().pair(unit(G, host.adapter("base"), ipadapter_input=[object()])) is None


@pytest.mark.parametrize("model", ["base", "BASE", "bas"])
def test_a_part_of_a_name_is_the_shortest_that_holds_it(host, model):
    for file in ("base-and-more", "base"):
        host.lay(host.folder / f"{file}.pth")
    assert A1111UnitEncoders().pair(unit(H, model)).adapter.file == host.folder / "base.pth"


def test_a_file_by_its_quoted_path(host):
    host.files["quoted [1]"] = f'"{host.folder / "quoted.pth"}"'
    assert A1111UnitEncoders().pair(unit(H, "quoted [1]")).adapter.file == host.folder / "quoted.pth"


def test_the_loaded_encoder_is_believed_and_its_name_is_not(host):
    host.load("clip_h", 1664, 1280)
    assert A1111UnitEncoders().pair(unit(H, host.adapter("base"))).offer.kind == VIT_BIGG
    assert A1111UnitEncoders().preprocessor_for(NEEDS_G) == H


# What a pickle takes.


def loaded(**more):
    flags = ("is_plus", "is_full", "is_faceid", "is_instantid", "is_pulid")
    adapter = SimpleNamespace(**{**dict.fromkeys(flags, False), "clip_embeddings_dim": None, **more})
    return SimpleNamespace(model=SimpleNamespace(ipadapter=adapter))


@pytest.mark.parametrize(
    ("file", "module", "built", "need"),
    [
        ("old", H, {"clip_embeddings_dim": 1024}, NEEDS_H),
        ("old", H, {"clip_embeddings_dim": 1280}, NEEDS_G),
        ("old", H, {"clip_embeddings_dim": 1280, "is_plus": True}, EncoderNeed(VIT_H, 1280, HIDDEN)),
        ("old-faceid", FACE, {"is_faceid": True}, NEEDS_FACE),
        ("old-faceid", BOTH, {"is_faceid": True, "is_plus": True, "clip_embeddings_dim": 1280}, NEEDS_BOTH),
    ],
)
def test_a_pickle_tells_what_it_takes_when_the_host_has_loaded_it(host, file, module, built, need):
    name, encoders = host.lay(host.folder / f"{file}.pth"), A1111UnitEncoders()
    encoders.units(request())
    assert encoders.pair(unit(module, name)).need is None
    Script.model_cache[name] = loaded(**built)
    assert encoders.pair(unit(module, name)).need == need


def test_another_model_in_the_cache_is_none(host):
    name, encoders = host.lay(host.folder / "control.pth"), A1111UnitEncoders()
    encoders.units(request())
    Script.model_cache[name] = SimpleNamespace(model=SimpleNamespace(control_model=None))
    assert encoders.pair(unit("clip_vision", name)).need is None


# The preprocessor for a need.


def test_the_preprocessor_for_a_need(host):
    host.encoder("clip_h", "clip_g")
    found = [A1111UnitEncoders().preprocessor_for(need) for need in (NEEDS_H, NEEDS_G, NEEDS_FACE, NEEDS_BOTH)]
    assert found == [H, G, FACE, BOTH]


def test_none_whose_encoder_is_not_on_disk(host):
    host.encoder("clip_g")
    found = [A1111UnitEncoders().preprocessor_for(need) for need in (NEEDS_H, NEEDS_G, NEEDS_FACE, NEEDS_BOTH)]
    assert found == [None, G, FACE, None]


def test_what_is_loaded_needs_no_file(host):
    host.load("clip_h", 1280, 1024)
    assert A1111UnitEncoders().preprocessor_for(NEEDS_H) == H


def test_none_for_faces_where_insightface_is_not_whole(host, monkeypatch):
    host.encoder("clip_h")
    monkeypatch.setattr(a1111_encoder, "_finds_faces", lambda: False)
    found = [A1111UnitEncoders().preprocessor_for(need) for need in (NEEDS_H, NEEDS_FACE, NEEDS_BOTH)]
    assert found == [H, None, None]


def test_an_encoder_that_nobody_has(host):
    host.encoder("clip_h", "clip_g")
    assert A1111UnitEncoders().preprocessor_for(EncoderNeed(VIT_BIGG, 1664, HIDDEN)) == G
    assert A1111UnitEncoders().preprocessor_for(EncoderNeed(UNKNOWN, 777, EMBEDS)) is None


def test_faces_are_found_with_the_networks_that_are_asked_for(monkeypatch, tmp_path):
    path = ModuleType("path")
    path.models_path = str(tmp_path)
    monkeypatch.setitem(sys.modules, "annotator.annotator_path", path)
    monkeypatch.setitem(sys.modules, "insightface", ModuleType("insightface"))
    assert not a1111_encoder._finds_faces()
    folder = tmp_path / "insightface" / "models" / "buffalo_l"
    folder.mkdir(parents=True)
    (folder / "w600k_r50.onnx").touch()
    assert a1111_encoder._finds_faces()


# The unit, and what is written of it.


def test_a_unit_is_copied_and_the_infotext_follows():
    units = [unit(H, "base"), unit(G, "base"), unit(G, "base")]
    texts = {"Steps": units[1].serialize(), **{f"ControlNet {n}": one.serialize() for n, one in enumerate(units)}}
    asked = SimpleNamespace(extra_generation_params=dict(texts))
    after = A1111UnitEncoders().with_preprocessor(units[1], H, asked)
    assert (units[1].module, after.module, after.weight) == (G, H, 1.0)
    assert asked.extra_generation_params == {**texts, "ControlNet 1": after.serialize()}
    A1111UnitEncoders().with_preprocessor(units[2], H, asked)
    assert asked.extra_generation_params["ControlNet 2"] == after.serialize()


def test_a_request_that_is_gone_has_no_infotext():
    assert A1111UnitEncoders().with_preprocessor(unit(G, "base"), H, None).module == H


def test_the_extension_unloads_by_itself(host):
    encoders = A1111UnitEncoders()
    assert encoders.unload_others([encoders.pair(unit(H, host.adapter("base")))]) == {}


# The request and the model.


def request(*scripts):
    return SimpleNamespace(scripts=SimpleNamespace(alwayson_scripts=[object(), *(scripts or (Script(),))]), units=[1])


def test_the_script_is_found_by_its_title():
    other = type("Other", (Script,), {"title": lambda self: "Other", "get_enabled_units": lambda self: []})()
    assert A1111UnitEncoders().units(request(other, Script())) == (Script, "get_enabled_units")
    assert A1111UnitEncoders().units(request(other)) is None
    assert A1111UnitEncoders().units(SimpleNamespace(scripts=None)) is None


def test_its_static_method_is_wrapped_and_put_back():
    attachments, before = Attachments(), vars(Script)["get_enabled_units"]
    attachments.method(*A1111UnitEncoders().units(request()), lambda function: lambda p: [*function(p), 2])
    assert Script.get_enabled_units(request()) == Script().get_enabled_units(request()) == [1, 2]
    assert marked(Script)
    attachments.detach()
    assert vars(Script)["get_enabled_units"] is before and not marked(Script)


def test_the_text_that_the_model_takes(monkeypatch):
    layers = {"a.attn1.to_k": nn.Linear(320, 320), "a.attn2.to_k": nn.Linear(768, 320)}
    data = SimpleNamespace(
        sd_model=SimpleNamespace(model=SimpleNamespace(diffusion_model=on_meta(lambda: named(layers))))
    )
    modules, sd_models = ModuleType("modules"), ModuleType("modules.sd_models")
    modules.sd_models, sd_models.model_data = sd_models, data
    monkeypatch.setitem(sys.modules, "modules", modules)
    monkeypatch.setitem(sys.modules, "modules.sd_models", sd_models)
    assert A1111UnitEncoders().text_width() == 768
    data.sd_model = None
    assert A1111UnitEncoders().text_width() is None

"""The encoder guard on a host whose units name preprocessors: what it says, what it changes, and how often."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_family import IP_ADAPTERS, write

from lib_guard.border import Border
from lib_guard.files.families import EncoderNeed, EncoderOffer
from lib_guard.findings import Finding, Repair
from lib_guard.guards import EncoderGuard, GuardContext
from lib_guard.hooks import marked
from lib_guard.hosts.encoder_handling import AdapterUse, UnitPair
from lib_guard.settings import Settings

H, BIGG = EncoderOffer("vit_h", 1024, 1280), EncoderOffer("vit_bigg", 1280, 1664)
FACE = EncoderOffer("insightface", 512, None)
#: What preprocessors give: an encoder's offer, and whether a face's embedding beside it.
GIVES = {"clip_h": (H, False), "clip_g": (BIGG, False), "face": (FACE, False), "face_plus": (H, True)}


@dataclass(frozen=True)
class Unit:
    adapter: Path
    preprocessor: str


class Extension:
    """Hands out the units of a request, several times a generation."""

    def __init__(self, units: list[Unit]) -> None:
        self.held = units

    def get_enabled_units(self) -> list[Unit]:
        return list(self.held)


@dataclass
class Units:
    """A host's handling. there: the preprocessors whose encoder is on disk."""

    extension: Extension
    there: tuple[str, ...] = tuple(GIVES)
    width: int | None = 768
    loaded: EncoderNeed | None = None
    kept: dict[str, int] = field(default_factory=dict)
    asked: list[list[UnitPair]] = field(default_factory=list)
    gone: list[Unit] = field(default_factory=list)

    def units(self, request: Any) -> tuple[object, str]:
        return self.extension, "get_enabled_units"

    def pair(self, unit: Unit) -> UnitPair | None:
        if unit.preprocessor == "auto":
            return None
        offer, face = GIVES.get(unit.preprocessor, (None, False))
        use = AdapterUse(unit.adapter.stem, unit.adapter)
        return UnitPair(use, unit.preprocessor, offer, face, self.loaded)

    def preprocessor_for(self, need: EncoderNeed) -> str | None:
        fits = (name for name in self.there if need.met_by(GIVES[name][0]) and GIVES[name][1] == need.face)
        return next(fits, None)

    def with_preprocessor(self, unit: Unit, name: str, request: Any) -> Unit:
        return replace(unit, preprocessor=name)

    def left_out(self, unit: Unit, request: Any) -> None:
        self.gone.append(unit)

    def unload_others(self, pairs: list[UnitPair]) -> dict[str, int]:
        self.asked.append(list(pairs))
        freed, self.kept = self.kept, {}
        return freed

    def text_width(self) -> int | None:
        return self.width


class World:
    """One generation with the guard."""

    def __init__(self, handling: Units, policy: str = "fix") -> None:
        self.handling, self.comments = handling, []
        self.reports: list[tuple[Finding, Repair | None]] = []
        self.own_failures: list[Finding] = []
        host = SimpleNamespace(
            encoder_handling=lambda: handling,
            explain=lambda finding: finding,
            comment=lambda request, text: self.comments.append(text),
        )
        border, request = Border(self.own_failures.append), object()
        settings = Settings(encoder=policy)
        report = lambda finding, repair: self.reports.append((finding, repair))  # noqa: E731
        self.guard = EncoderGuard(GuardContext(host, settings, border, report, request=lambda: request))

    def __enter__(self) -> World:
        self.guard.attach()
        return self

    def __exit__(self, *raised: object) -> None:
        self.guard.detach()
        assert marked(self.handling.extension) == [] and "get_enabled_units" not in vars(self.handling.extension)
        assert self.own_failures == []

    @property
    def codes(self) -> list[str]:
        return [finding.code for finding, _ in self.reports]


@pytest.fixture
def adapter(tmp_path):
    """A header-only file of an adapter by its key in IP_ADAPTERS."""

    def make(name: str) -> Path:
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        return write(folder, IP_ADAPTERS[name][0])

    return make


#: The adapter, the preprocessor that was chosen, and the right one.
WRONG = {
    "plain ViT-H with bigG": ("sd15", "clip_g", "clip_h"),
    "plain bigG with ViT-H": ("sd15_vit-G", "clip_h", "clip_g"),
    "plus with bigG, which is as wide": ("plus_sd15", "clip_g", "clip_h"),
    "full face with bigG": ("full-face_sd15", "clip_g", "clip_h"),
    "FaceID with CLIP": ("faceid_sd15", "clip_h", "face"),
    "FaceID plus with CLIP alone": ("faceid-plus_sd15", "clip_h", "face_plus"),
    "FaceID plus with a face alone": ("faceid-plus_sd15", "face", "face_plus"),
    "plain with a face": ("sd15", "face_plus", "clip_h"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_pair_gets_the_right_preprocessor(adapter, name):
    key, chosen, right = WRONG[name]
    unit = Unit(adapter(key), chosen)
    with World(Units(Extension([unit]))) as world:
        assert [one.preprocessor for one in world.handling.extension.get_enabled_units()] == [right]
        assert [one.preprocessor for one in world.handling.extension.get_enabled_units()] == [right]
    ((finding, repair),) = world.reports
    assert finding.code == "LG402" and repair is not None and right in repair.did and repair.proof
    assert chosen in finding.saw and right in finding.permanent_fix and world.comments == []
    assert world.handling.extension.held == [unit], "the request's own unit stays as it was"


@pytest.mark.parametrize("name", WRONG)
def test_a_right_pair_is_left_alone(adapter, name):
    key, _, right = WRONG[name]
    unit = Unit(adapter(key), right)
    with World(Units(Extension([unit]))) as world:
        assert world.handling.extension.get_enabled_units()[0] is unit
    assert world.reports == []


def test_what_is_not_on_disk_is_left_out_and_said_on_the_console_and_under_the_picture(adapter):
    unit, other = Unit(adapter("sd15_vit-G"), "clip_h"), Unit(adapter("sd15"), "clip_h")
    with World(Units(Extension([unit, other]), there=("clip_h", "face"))) as world:
        assert world.handling.extension.get_enabled_units() == [other] == world.handling.extension.get_enabled_units()
    assert set(world.handling.gone) == {unit} and world.handling.asked[0][0].adapter.name == other.adapter.stem
    ((finding, repair),) = world.reports
    assert finding.code == "LG405" and repair is None and "ViT-bigG" in finding.saw
    (comment,) = world.comments
    assert comment.startswith("LibGuard LG405") and "ViT-bigG" in comment


def test_warn_says_it_and_changes_nothing(adapter):
    unit = Unit(adapter("sd15_vit-G"), "clip_h")
    handling = Units(Extension([unit]), kept={"ViT-L": 5})
    with World(handling, "warn") as world:
        assert handling.extension.get_enabled_units() == [unit]
    assert world.codes == ["LG402"] and world.reports[0][1] is None and handling.asked == []


def test_warn_leaves_out_nothing(adapter):
    unit = Unit(adapter("sd15_vit-G"), "clip_h")
    with World(Units(Extension([unit]), there=("clip_h",)), "warn") as world:
        assert world.handling.extension.get_enabled_units() == [unit]
    assert world.codes == ["LG405"] and world.handling.gone == [] and len(world.comments) == 1


def test_of_several_units_only_the_wrong_one_is_changed(adapter):
    units = [Unit(adapter("sd15"), "clip_h"), Unit(adapter("sd15_vit-G"), "clip_h"), Unit(adapter("sdxl"), "auto")]
    with World(Units(Extension(units))) as world:
        found = world.handling.extension.get_enabled_units()
    assert [unit.preprocessor for unit in found] == ["clip_h", "clip_g", "auto"] and found[0] is units[0]
    assert world.codes == ["LG402"]
    # Encoders that the pairs use stay: those of the pairs as they are now.
    assert [pair.preprocessor for pair in world.handling.asked[0]] == ["clip_h", "clip_g"]


def test_encoders_that_nobody_needs_are_let_go_of_and_their_megabytes_said(adapter):
    handling = Units(Extension([Unit(adapter("sd15"), "clip_h")]), kept={"OpenCLIP ViT-bigG": 3_690_000_000})
    with World(handling) as world:
        handling.extension.get_enabled_units()
        handling.extension.get_enabled_units()
    ((finding, repair),) = world.reports
    assert finding.code == "LG401" and "ViT-bigG" in finding.saw and "3690 MB" in repair.proof


def test_a_pickle_is_judged_by_what_the_host_has_loaded(tmp_path):
    file = tmp_path / "ip-adapter_sd15.pth"
    file.write_bytes(b"not opened")
    for loaded, codes in ((EncoderNeed("vit_bigg", 1280, "image_embeds"), ["LG402"]), (None, [])):
        with World(Units(Extension([Unit(file, "clip_h")]), loaded=loaded)) as world:
            world.handling.extension.get_enabled_units()
        assert world.codes == codes


def test_a_preprocessor_that_is_not_known_is_not_judged(adapter):
    with World(Units(Extension([Unit(adapter("sd15"), "somebody's own")]))) as world:
        world.handling.extension.get_enabled_units()
    assert world.reports == []


@pytest.mark.parametrize(("width", "codes"), [(768, []), (2048, ["LG406"]), (None, [])])
def test_an_adapter_for_another_family_of_models_is_said(adapter, width, codes):
    with World(Units(Extension([Unit(adapter("sd15"), "clip_h")]), width=width)) as world:
        world.handling.extension.get_enabled_units()
    assert world.codes == codes


@pytest.mark.parametrize("content", [b"", b"<html>", b"\xff" * 16], ids=["empty", "a page", "a huge header"])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, content):
    file = tmp_path / f"{'x' * 90}.safetensors"
    file.write_bytes(content)
    with World(Units(Extension([Unit(file, "clip_h")]))) as world:
        world.handling.extension.get_enabled_units()
        world.handling.extension.get_enabled_units()
    assert world.codes == ["LG407"] and str(tmp_path) not in world.reports[0][0].saw


def test_an_error_of_its_own_leaves_the_units_as_they_are(adapter):
    units = [Unit(adapter("sd15"), "clip_g")]
    handling = Units(Extension(units))
    handling.text_width = lambda: 1 // 0
    world = World(handling)
    world.guard.attach()
    assert handling.extension.get_enabled_units() == units
    world.guard.detach()
    assert [finding.code for finding in world.own_failures] == ["LG001"] and marked(handling.extension) == []

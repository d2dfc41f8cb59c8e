"""One generation from open to close, whatever way it ends."""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import SimpleNamespace
from typing import ClassVar

import pytest

from lib_guard import console
from lib_guard.findings import Finding, Repair
from lib_guard.guards import GuardContext
from lib_guard.ledger import Ledger
from lib_guard.watch import Watches


class Request:
    """What a host calls `p`."""

    def __init__(self) -> None:
        self.ends: list[Callable[[], None]] = []
        self.extra_generation_params: dict[str, str] = {}


class Host:
    """A host without a model; `running` are the requests that are on the stack."""

    title = "a host"

    def __init__(self) -> None:
        self.settings: dict[str, object] = {}
        self.running: list[Request] = []

    def options(self):
        return self.settings

    def boundaries(self):
        return []

    def arrivals(self):
        return []

    def tab(self, request):
        return "txt2img"

    def on_end(self, request, call):
        request.ends.append(call)

    def is_running(self, request):
        return request in self.running

    def write_infotext(self, request, values):
        request.extra_generation_params.update(values)

    def explain(self, finding):
        return finding


class Spy:
    """A guard that writes down what is done with it."""

    name = "precision"
    early = False
    log: ClassVar[list[str]] = []
    #: What it was told of the generation's course.
    calls: ClassVar[list[str]] = []
    trouble = ""

    def __init__(self, context: GuardContext) -> None:
        self.context = context

    def attach(self) -> None:
        Spy.log.append(f"attach {self.context.settings.precision}")
        if Spy.trouble == "attach":
            raise ValueError("a mistake of ours")

    def detach(self) -> None:
        Spy.log.append("detach")
        if Spy.trouble == "detach":
            raise ValueError("a mistake of ours")

    @classmethod
    def passed_over(cls) -> None:
        """Nothing to note: `off` is told by nothing having happened."""

    def settled(self, request: object) -> None:
        Spy.calls.append("settled")

    def sampled(self, request: object) -> None:
        Spy.calls.append("sampled")

    def finished(self) -> None:
        Spy.calls.append("finished")

    def find(self) -> None:
        self.context.report(Finding("LG101", "precision", "vae", "decode", "saw"), Repair("did", "proof", 1.0))


@pytest.fixture
def world():
    """Host, ledger and watches, with the one guard `Spy`."""
    Spy.log, Spy.calls, Spy.trouble = [], [], ""
    console.set_up("normal")
    host, ledger = Host(), Ledger()
    return SimpleNamespace(host=host, ledger=ledger, watches=Watches(host, ledger, (Spy,)))


def spy(world) -> Spy:
    return world.watches._open[-1].guards[0]


def outcomes(world) -> list[str]:
    return [generation.outcome for generation in world.ledger.generations()]


def test_a_generation_that_comes_through(world):
    request = Request()
    world.watches.begin(request, [])
    assert Spy.log == ["attach fix"]
    world.watches.end(request)
    world.watches.end(request)
    request.ends[0]()
    assert Spy.log == ["attach fix", "detach"] and outcomes(world) == ["finished"]


def test_guards_are_told_of_its_course(world):
    request = Request()
    world.watches.begin(request, [])
    world.watches.settled(request)
    world.watches.note(request)
    world.watches.end(request)
    assert Spy.calls == ["settled", "sampled", "finished"]


def test_a_failed_generation_is_not_said_to_have_come_through(world):
    request = Request()
    world.watches.begin(request, [])
    world.watches.settled(request)
    request.ends[0]()
    world.watches.end(request)
    assert Spy.calls == ["settled"]


def test_a_failed_generation_ends_where_the_host_always_ends_it(world):
    request = Request()
    world.watches.begin(request, [])
    request.ends[0]()
    assert Spy.log[-1] == "detach" and outcomes(world) == ["failed"]


def test_a_failed_generation_ends_with_its_request_object(world):
    world.watches.begin(Request(), [])
    gc.collect()
    assert Spy.log[-1] == "detach" and outcomes(world) == ["failed"]


def test_the_next_request_ends_what_a_failure_left_open(world):
    left = Request()
    world.watches.begin(left, [True, "warn"])
    world.watches.begin(Request(), [True, "off"])
    assert Spy.log == ["attach warn", "detach"] and outcomes(world)[0] == "failed"


def test_a_request_that_is_begun_again_is_watched_once_with_the_later_args(world):
    request = Request()
    world.host.running = [request]
    world.watches.begin(request, [])
    world.watches.begin(request, [True, "warn"])
    assert Spy.log == ["attach fix", "detach", "attach warn"]
    world.watches.end(request)
    assert Spy.log[3:] == ["detach"] and outcomes(world) == ["failed", "finished"]


def test_a_generation_inside_another_has_the_model_for_itself(world):
    outer, inner = Request(), Request()
    world.host.running = [outer]
    world.watches.begin(outer, [True, "fix"])
    world.watches.begin(inner, [True, "off"])
    assert Spy.log == ["attach fix", "detach"], "off means that nothing is attached, not even for the outer one"
    world.watches.end(inner)
    assert Spy.log == ["attach fix", "detach", "attach fix"]
    world.watches.end(outer)
    assert Spy.log[-1] == "detach" and outcomes(world) == ["finished", "finished"]


def test_an_inner_generation_that_failed_ends_with_the_outer_one(world):
    outer, inner = Request(), Request()
    world.host.running = [outer]
    world.watches.begin(outer, [])
    world.watches.begin(inner, [])
    world.watches.end(outer)
    assert Spy.log.count("detach") == 2 and outcomes(world) == ["finished", "failed"]


@pytest.mark.parametrize("args", [[False], [True, "off"], [False, "fix"]])
def test_off_makes_no_guard(world, args):
    world.watches.begin(Request(), args)
    assert Spy.log == []


def test_infotext_only_when_it_acted(world):
    request = Request()
    world.watches.begin(request, [])
    world.watches.note(request)
    assert request.extra_generation_params == {}
    spy(world).find()
    world.watches.note(request)
    assert request.extra_generation_params == {
        "LibGuard": "LG101",
        "LibGuard precision": "fix",
        "LibGuard VAE precision": "auto",
        "LibGuard finite": "fix",
        "LibGuard LoRA": "fix",
        "LibGuard encoder": "fix",
    }


def test_infotext_names_a_chosen_precision(world):
    request = Request()
    world.watches.begin(request, [True, "warn", "float32"])
    world.watches.note(request)
    assert request.extra_generation_params == {
        "LibGuard precision": "warn",
        "LibGuard VAE precision": "float32",
        "LibGuard finite": "fix",
        "LibGuard LoRA": "fix",
        "LibGuard encoder": "fix",
    }


def test_a_cause_is_said_once_a_generation(world, capsys):
    request = Request()
    world.watches.begin(request, [])
    for _ in range(3):
        spy(world).find()
    world.watches.end(request)
    world.watches.begin(request, [])
    spy(world).find()
    assert capsys.readouterr().err.count("LG101") == 2
    assert [g.entries[0].count for g in world.ledger.generations()] == [3, 1]


def test_bad_arguments_are_one_line_and_the_defaults_are_used(world, capsys):
    request = Request()
    world.watches.begin(request, [True, float("nan"), {"a": 1}, 7])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "LG002" in lines[0] and Spy.log == ["attach fix"]


def test_a_broken_setting_is_said_once_and_the_default_is_used(world, capsys):
    world.host.settings = {"lib_guard_precision": ["?"]}
    for _ in range(3):
        world.watches.begin(Request(), [])
    assert capsys.readouterr().err.count("LG003") == 1 and Spy.log[0] == "attach fix"


@pytest.mark.parametrize("trouble", ["attach", "detach"])
def test_a_broken_guard_is_said_once_and_its_hooks_are_taken_off(world, capsys, trouble):
    Spy.trouble = trouble
    request = Request()
    world.watches.begin(request, [])
    world.watches.end(request)
    assert Spy.log == ["attach fix", "detach"] and capsys.readouterr().err.count("LG001") == 1
    Spy.trouble = ""
    world.watches.begin(request, [])
    assert Spy.log[-1] == "attach fix", "the next request is a new chance"


def test_a_broken_host_adapter_stops_no_generation(world, capsys, monkeypatch):
    def broken(*args):
        raise AttributeError("the host has changed")

    for seam in ("options", "tab", "on_end", "is_running", "write_infotext"):
        with monkeypatch.context() as patch:
            patch.setattr(Host, seam, broken)
            request = Request()
            world.watches.begin(request, [])
            world.watches.note(request)
            world.watches.end(request)
        world.watches.end_all()
    assert "LG001" in capsys.readouterr().err and Spy.log.count("detach") == len(
        [x for x in Spy.log if "attach f" in x]
    )


def test_unloading_takes_everything_off(world):
    outer = Request()
    world.host.running = [outer]
    world.watches.begin(outer, [])
    world.watches.begin(Request(), [])
    world.watches.end_all()
    assert Spy.log.count("detach") == Spy.log.count("attach fix") and world.watches._open == []


def test_a_request_is_not_kept_alive(world):
    request = Request()
    world.watches.begin(request, [])
    world.watches.end(request)
    ends = request.ends
    del request
    gc.collect()
    ends[0]()
    assert outcomes(world) == ["finished"]


class EarlySpy(Spy):
    """One that goes before other extensions."""

    name = "encoder"
    early = True

    def attach(self) -> None:
        Spy.log.append(f"early {self.context.settings.encoder}")


@pytest.fixture
def two(world):
    """With a guard that goes early as well."""
    world.host.remember = lambda request: None
    world.watches = Watches(world.host, world.ledger, (EarlySpy, Spy))
    return world


def test_an_early_guard_is_attached_before_the_others_and_once(two):
    request = Request()
    two.watches.prepare(request, [])
    assert Spy.log == ["early fix"]
    two.watches.begin(request, [])
    assert Spy.log == ["early fix", "attach fix"] and len(two.ledger.generations()) == 1
    two.watches.end(request)
    assert Spy.log[2:] == ["detach", "detach"] and outcomes(two) == ["finished"]


def test_a_request_that_was_never_prepared_gets_all_guards(two):
    request = Request()
    two.watches.begin(request, [])
    assert Spy.log == ["early fix", "attach fix"]


def test_a_prepared_request_that_never_begins_ends_as_any_other(two):
    request = Request()
    two.watches.prepare(request, [])
    request.ends[0]()
    assert Spy.log == ["early fix", "detach"] and outcomes(two) == ["failed"]


def test_arguments_that_changed_in_between_are_followed(two):
    request = Request()
    two.watches.prepare(request, [True, "fix", "auto", "fix", "fix", "fix"])
    two.watches.begin(request, [True, "warn", "auto", "fix", "fix", "off"])
    assert Spy.log == ["early fix", "detach", "attach warn"] and len(two.ledger.generations()) == 1


def test_an_inner_generation_before_the_outer_one_has_begun(two):
    outer, inner = Request(), Request()
    two.host.running = [outer]
    two.watches.prepare(outer, [])
    two.host.running = [outer, inner]
    two.watches.prepare(inner, [])
    two.watches.begin(inner, [])
    two.watches.end(inner)
    assert Spy.log == ["early fix", "detach", "early fix", "attach fix", "detach", "detach", "early fix"]
    two.watches.begin(outer, [])
    assert Spy.log[7:] == ["attach fix"]
    two.watches.end(outer)
    assert two.watches._open == []

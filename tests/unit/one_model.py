"""A host that has one model and nothing else, and the guards on it for the length of a `with`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from lib_guard.border import Border
from lib_guard.findings import Finding, Repair
from lib_guard.guards import GUARDS, Guard, GuardContext
from lib_guard.hooks import marked
from lib_guard.hosts.base import Arrival, Boundary, Shield
from lib_guard.settings import Settings


def _cpu_computes_in_half() -> bool:
    try:
        torch.conv2d(*[torch.ones(1, 1, 2, 2, dtype=torch.float16)] * 2)
    except RuntimeError:
        return False
    return True


#: Where the first thing that goes wrong is that there is no kernel at all, another fault cannot be shown.
needs_half_kernels = pytest.mark.skipif(
    not _cpu_computes_in_half(), reason=f"torch {torch.__version__} has no float16 kernels on a CPU"
)


@dataclass
class OneModel:
    """Its boundaries are asked anew each time, so that a test can exchange what they are on."""

    find: Callable[[], Sequence[Boundary]]
    all_shields: tuple[Shield, ...] = ()
    all_arrivals: tuple[Arrival, ...] = ()
    lora_files: tuple[tuple[str, Path], ...] = ()
    now: tuple[int, int] = (0, 0)
    title: str = "one model"

    def boundaries(self):
        return self.find()

    def arrivals(self):
        return self.all_arrivals

    def shields(self):
        return self.all_shields

    def lora_handling(self):
        return None

    def encoder_handling(self):
        return None

    def comment(self, request, text):
        pass

    def loras(self):
        return self.lora_files

    def step(self):
        return self.now

    def left_behind(self, put_back):
        return ()

    def explain(self, finding: Finding) -> Finding:
        return finding


@dataclass
class Guarded:
    """All guards on one host; afterwards nothing of theirs is left."""

    host: OneModel
    settings: Settings = field(default_factory=Settings)
    kinds: tuple[type[Guard], ...] = GUARDS
    reports: list[tuple[Finding, Repair | None]] = field(default_factory=list)
    own_failures: list[Finding] = field(default_factory=list)

    def __enter__(self) -> Guarded:
        border = Border(self.own_failures.append)
        context = GuardContext(self.host, self.settings, border, lambda f, r: self.reports.append((f, r)))
        self._guards = [kind(context) for kind in self.kinds if self.settings.policy(kind.name) != "off"]
        for guard in self._guards:
            guard.attach()
        return self

    def __exit__(self, *raised: object) -> None:
        for guard in reversed(self._guards):
            guard.detach()
        for boundary in self.host.find():
            assert not marked(boundary.owner) and not {"encode", "decode"} & set(vars(boundary.owner))
        assert torch.overrides._get_current_function_mode() is None
        if raised[0] is None:
            assert self.own_failures == []

    @property
    def codes(self) -> list[str]:
        return [finding.code for finding, _ in self.reports]

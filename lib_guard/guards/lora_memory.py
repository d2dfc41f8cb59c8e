"""What is known about the weights from one generation to the next."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from ..hosts.lora_handling import Asked, Place


class Memory:
    """What was proven last, and of which model. Everything may be forgotten at any time: then weights are read again.

    last: what was asked for when the weights were last brought into a known state; None when they are in none.
    """

    def __init__(self) -> None:
        self.last: Asked | None = None
        self._owners: list[weakref.ref[Any]] = []
        self._origins: list[str] = []
        #: The guard of the generation that is not known to have come through.
        self._open: weakref.ref[Any] | None = None
        self._trusted = False
        #: The LoRAs of the requests since the weights were last at the base, for whose they may be.
        self._names: list[str] = []

    def knows(self, guard: object, asked: Asked, places: Sequence[Place]) -> bool:
        """Whether the weights are known to be what `asked` makes of them. From here on it is this guard's generation
        that has to come through."""
        came_through = self._open is None or self._open() is guard
        self._open = weakref.ref(guard)
        return came_through and self._trusted and asked == self.last and self._is_same(places)

    def note(self, guard: object, asked: Asked, places: Sequence[Place]) -> None:
        """The weights are the base, and `asked` is what the host makes of them in this guard's generation."""
        self.last = asked
        self._owners = [weakref.ref(place.owner) for place in places]
        self._origins = [place.origin for place in places]
        self._open, self._trusted = weakref.ref(guard), True
        self._names = [use.name for use in asked.loras]

    def close(self, guard: object) -> None:
        """The guard's generation has come through."""
        if self._open is not None and self._open() is guard:
            self._open = None

    def distrust(self) -> None:
        """The weights may be anything from here on."""
        self._trusted = False

    @property
    def trusted(self) -> bool:
        """Whether `last` is what the weights, and what was encoded with them, come from."""
        return self._trusted

    def suspects(self) -> list[str]:
        """The LoRAs whose rest may be in the weights, when they are found changed."""
        return list(dict.fromkeys(self._names))

    def _is_same(self, places: Sequence[Place]) -> bool:
        owners = [owner() for owner in self._owners]
        return len(owners) == len(places) and all(
            owner is place.owner and origin == place.origin
            for owner, origin, place in zip(owners, self._origins, places)
        )


#: There is one model in a process.
MEMORY = Memory()

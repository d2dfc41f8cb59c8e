"""What the probe can do inside a running host, from the outside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.server import Server


class Looks:
    """The probe's operations; `probe/scripts/lib_guard_probe.py` explains each."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def __call__(self, operation: str, **arguments: Any) -> Any:
        """Run one operation. Raises RuntimeError with the probe's own text when it fails."""
        answer = self._server.post(f"/lib-guard-probe/{operation}", arguments)
        if answer.status != 200:
            raise RuntimeError(f"the probe's {operation} failed: {answer.status} {answer.text[:2000]}")
        return answer.json

    def damage(self, how: str) -> None:
        """Bring the loaded VAE into a state of `probe.DAMAGES`."""
        self("damage", how=how)

    def align(self, on: bool) -> None:
        """Have encode and decode spoken to as a correct caller would; independent of LibGuard."""
        self("align", on=on)

    def weights(self) -> dict[str, str]:
        """Component -> hash over the raw bytes of all its parameters and buffers."""
        return self("weights")

    def dtypes(self) -> dict[str, dict[str, int]]:
        """Component -> dtype -> how many parameters are in it."""
        return self("dtypes")

    def marks(self) -> list[str]:
        """Where on the model something of LibGuard's is now."""
        return self("marks")

    def watch_hooks(self, on: bool) -> list[list[str]]:
        """Note at each call of the denoiser and the VAE's decoder what hangs on the model; what was noted since."""
        return self("watch_hooks", on=on)

    def ledger(self) -> list[dict[str, Any]]:
        """LibGuard's record, oldest generation first."""
        return self("ledger")

    def generation(self) -> tuple[int, int]:
        """A mark for `since`: which record there is, and the number of the last generation that LibGuard has seen."""
        generations = self.ledger()
        return self("record"), generations[-1]["number"] if generations else 0

    def since(self, mark: tuple[int, int]) -> list[dict[str, Any]]:
        """The generations after that one. The record is bounded, so its length says nothing; and after a reload of the
        UI there is a new one, which counts anew."""
        record, number = mark
        anew = self("record") != record
        return [one for one in self.ledger() if anew or one["number"] > number]

    def entries(self) -> list[dict[str, Any]]:
        """What LibGuard recorded for the last generation."""
        generations = self.ledger()
        return generations[-1]["entries"] if generations else []

    def at_step(self, step: int, what: str) -> None:
        """At the denoiser's call number `step` of the next generations: `interrupt`, `skip`, `raise`, or `nothing`."""
        self("at_step", step=step, what=what)

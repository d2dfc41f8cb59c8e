"""One file a guard; `GUARDS` is the order in which a generation attaches them."""

from .base import Guard, GuardContext
from .precision import PrecisionGuard

GUARDS: tuple[type[Guard], ...] = (PrecisionGuard,)

__all__ = ["GUARDS", "Guard", "GuardContext", "PrecisionGuard"]

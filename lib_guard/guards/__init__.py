"""One file a guard; `GUARDS` is the order in which a generation attaches them."""

from .base import Guard, GuardContext
from .finite import FiniteGuard
from .precision import PrecisionGuard

#: The finite guard comes last, so that it looks at what a VAE returns after the precision guard.
GUARDS: tuple[type[Guard], ...] = (PrecisionGuard, FiniteGuard)

__all__ = ["GUARDS", "FiniteGuard", "Guard", "GuardContext", "PrecisionGuard"]

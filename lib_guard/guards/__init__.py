"""One file a guard; `GUARDS` is the order in which a generation attaches them."""

from .base import Guard, GuardContext
from .finite import FiniteGuard
from .lora import LoraGuard
from .precision import PrecisionGuard

#: The finite guard comes after the precision guard, so that it looks at what a VAE returns behind that.
GUARDS: tuple[type[Guard], ...] = (PrecisionGuard, FiniteGuard, LoraGuard)

__all__ = ["GUARDS", "FiniteGuard", "Guard", "GuardContext", "LoraGuard", "PrecisionGuard"]

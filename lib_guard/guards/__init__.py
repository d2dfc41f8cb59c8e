"""One file a guard; `GUARDS` is the order in which a generation attaches them."""

from .base import Guard, GuardContext
from .encoder import EncoderGuard
from .finite import FiniteGuard
from .lora import LoraGuard
from .precision import PrecisionGuard

#: The finite guard comes after the precision guard, so that it looks at what a VAE returns behind that. The encoder
#: guard comes before both, which let go of an image encoder before it is exchanged.
GUARDS: tuple[type[Guard], ...] = (EncoderGuard, PrecisionGuard, FiniteGuard, LoraGuard)

__all__ = ["GUARDS", "EncoderGuard", "FiniteGuard", "Guard", "GuardContext", "LoraGuard", "PrecisionGuard"]

"""The encoder guard: an IP-Adapter is given the embedding of the image encoder that it was made for.

IP-Adapters come in families, each with its own CLIP vision encoder. WebUIs keep the one of the adapter before, pair
wrong ones, or swallow the error and deliver a picture without the adapter. What an adapter needs is read from its
file's header or from its live projection, what an encoder gives from the live module: names lie, and a width alone
decides nothing (1280 is ViT-bigG's embedding and ViT-H's hidden states).
"""

from __future__ import annotations

from typing import Any

from ..hooks import Attachments
from ..hosts.encoder_handling import UnitEncoders
from ..settings import FIX
from .base import GuardContext
from .encoder_file import GUARD
from .encoder_pipeline import PipelinePairing
from .encoder_units import UnitPairing


class EncoderGuard:
    """See the module's docstring. It is attached before other extensions work on a request: a ControlNet extension
    encodes images in its own `process`."""

    name = GUARD
    early = True

    def __init__(self, context: GuardContext) -> None:
        self._attachments = Attachments()
        self._pairing: UnitPairing | PipelinePairing | None = None
        handling, repair = context.host.encoder_handling(), context.settings.encoder == FIX
        if isinstance(handling, UnitEncoders):
            self._pairing = UnitPairing(context, handling, repair)
        elif handling is not None:
            self._pairing = PipelinePairing(context, handling, repair)

    def attach(self) -> None:
        """See `Guard`."""
        if self._pairing is not None:
            self._pairing.attach(self._attachments)

    def detach(self) -> None:
        """See `Guard`."""
        self._attachments.detach()

    @classmethod
    def passed_over(cls) -> None:
        """See `Guard`. Nothing is remembered from one generation to the next."""

    def settled(self, request: Any) -> None:
        """See `Guard`."""

    def sampled(self, request: Any) -> None:
        """See `Guard`."""

    def finished(self) -> None:
        """See `Guard`."""

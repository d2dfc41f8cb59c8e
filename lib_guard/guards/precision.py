"""The precision guard: within a boundary every operation gets operands of one floating dtype.

Nothing is cast ahead of a failure: a call with unequal dtypes is healthy under autocast, under a host's manual cast
and wherever an operation promotes by itself, and a healthy generation must keep every bit. So the boundary's parts run
under `Reconcile`, which acts on the operation that raises. In a VAE of one dtype that operation is computed in the
VAE's dtype, which is the entry cast that the caller forgot; in a VAE of several, in the dtype that loses nothing.

What a caller gets back it gets in the dtype that it came with: with the input cast alone, SD.Next's img2img fails in
the UNet instead of the VAE. The latents are *sampled* in the VAE's dtype first, as diffusers does itself where it
upcasts (pipeline_stable_diffusion_xl_img2img.py:772), so the picture is that of a healthy configuration bit for bit.
"""

from __future__ import annotations

from ..hooks import Attachments
from ..hosts.base import VaeBoundary
from ..settings import FIX
from .base import GuardContext
from .crossing import Crossing


class PrecisionGuard:
    """See the module's docstring. Guards the VAE's encode and decode."""

    name = "precision"

    def __init__(self, context: GuardContext) -> None:
        self._context = context
        self._attachments = Attachments()
        self._crossings: list[Crossing] = []

    def attach(self) -> None:
        """Put the pair of hooks on every part of every boundary, and the span on the method around them."""
        self._put_back()
        for boundary in self._context.host.boundaries():
            if not isinstance(boundary, VaeBoundary):
                continue
            crossing = Crossing(boundary, self._context)
            self._crossings.append(crossing)
            crossing.attach(self._attachments)

    def detach(self) -> None:
        """Take the hooks away; modes that an interrupt left entered do nothing from here on."""
        self._attachments.detach()
        for crossing in self._crossings:
            crossing.disarm()
        self._crossings.clear()
        self._put_back()

    def _put_back(self) -> None:
        for finding, repair in self._context.host.left_behind(put_back=self._context.settings.precision == FIX):
            self._context.report(finding, repair)

"""The precision guard: within a boundary every operation gets operands of one floating dtype.

Nothing is cast ahead of a failure: a call with unequal dtypes is healthy under autocast, under a host's manual cast
and wherever an operation promotes by itself, and a healthy generation must keep every bit. So components run under
`Reconcile`, which acts on the operation that raises. In a component of one dtype that operation is computed in that
dtype, which is the entry cast that the caller forgot; in one of several, in the dtype that loses nothing.

What a caller gets back it gets in the dtype that it came with: with the input cast alone, SD.Next's img2img fails in
the UNet instead of the VAE. Latents are *sampled* in the VAE's dtype first, as diffusers does itself where it upcasts
(pipeline_stable_diffusion_xl_img2img.py:772), so the picture is that of a healthy configuration bit for bit.
"""

from __future__ import annotations

from ..hooks import Attachments
from ..hosts.base import Boundary, VaeBoundary
from ..settings import FIX
from .base import BoundaryGuard, GuardContext
from .component_crossing import ComponentCrossing
from .crossing import Crossing
from .vae_crossing import VaeCrossing


class PrecisionGuard(BoundaryGuard):
    """See the module's docstring. Guards the VAE's encode and decode, and every component that is called."""

    name = "precision"

    def __init__(self, context: GuardContext) -> None:
        super().__init__(context)
        self._crossings: list[Crossing] = []

    def attach(self) -> None:
        """See `Guard`. What an earlier failure left is put back first."""
        self._put_back()
        super().attach()

    def attach_to(self, boundary: Boundary, attachments: Attachments) -> None:
        """See `BoundaryGuard`."""
        crossing = (
            VaeCrossing(boundary, self._context)
            if isinstance(boundary, VaeBoundary)
            else ComponentCrossing(boundary, self._context)
        )
        self._crossings.append(crossing)
        crossing.attach(attachments)

    def detach(self) -> None:
        """See `Guard`."""
        super().detach()
        self._put_back()

    def _let_go(self) -> None:
        """Modes that an interrupt left entered do nothing from here on."""
        super()._let_go()
        for crossing in self._crossings:
            crossing.disarm()
        self._crossings.clear()

    def _put_back(self) -> None:
        for finding, repair in self._context.host.left_behind(put_back=self._context.settings.precision == FIX):
            self._context.report(finding, repair)

"""The accordion in txt2img and img2img: one control for each field of the schema, and the status under them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from ..ledger import Ledger
from ..settings import FIELDS, Field, Settings, from_infotext, shown
from .status import status_html


@dataclass(frozen=True)
class Accordion:
    """What was built. controls: in the order of the script args."""

    controls: list[Any]

    def infotext_fields(self) -> list[tuple[Any, Callable[[Mapping[str, object]], bool | str | None]]]:
        """For the host's `infotext_fields`: pasting a picture's infotext sets the switches that it carries."""
        return [(control, partial(_pasted, field)) for control, field in zip(self.controls, FIELDS)]


def build(defaults: Settings, ledger: Ledger, tab: str, elem_id: Callable[[str], str]) -> Accordion:
    """Build the accordion inside the host's open layout; closed at first. Hosts call this several times a tab, also
    outside of a page (the API asks for the defaults), so it does nothing but build.

    tab: `txt2img` or `img2img`. elem_id: the host's maker of element ids.
    """
    with gr.Accordion(
        "LibGuard", open=False, elem_id=elem_id("accordion"), elem_classes=["lib-guard", f"lib-guard-{tab}"]
    ):
        controls = [_control(field, getattr(defaults, field.name), elem_id(field.name)) for field in FIELDS]
        status = gr.HTML(status_html(ledger.last(tab)), elem_id=elem_id("status"))
        # Pressed by javascript/lib_guard.js after each generation. A change event of the host's log would do without
        # it, but under Gradio 4 those fire again whenever the page is touched, for ever.
        renew = gr.Button("Renew", elem_id=elem_id("renew"), elem_classes=["lib-guard-renew"])
        # Not queued: behind a generation of another tab the status would come too late.
        renew.click(lambda: status_html(ledger.last(tab)), None, status, show_progress="hidden", queue=False)
    return Accordion(controls)


def _control(field: Field, value: bool | str, elem_id: str) -> Any:
    if field.choices is None:
        return gr.Checkbox(value=bool(value), label=field.label, info=field.info, elem_id=elem_id)
    return gr.Radio(
        choices=list(field.choices), value=shown(field, value), label=field.label, info=field.info, elem_id=elem_id
    )


def _pasted(field: Field, parameters: Mapping[str, object]) -> bool | str | None:
    """The value that an infotext gives a control; None leaves the control as it is."""
    found = from_infotext(parameters)
    return shown(field, found[field.name]) if field.name in found else None

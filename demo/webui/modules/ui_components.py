"""Components that the real hosts offer to extensions."""

from __future__ import annotations

from typing import Any

import gradio as gr


class InputAccordion(gr.Checkbox):
    """An accordion that is a checkbox: its value says whether the section is on.

    Used as `with InputAccordion(False, label="...") as enabled:`. Ticking opens the section, unticking closes it.
    """

    def __init__(self, value: bool = False, *, label: str = "", elem_id: str | None = None, **kwargs: Any) -> None:
        self.accordion = gr.Accordion(label, open=value, elem_id=f"{elem_id}-accordion" if elem_id else None)
        # Drawn on entering, as the section's first line; Gradio also makes it anew outside the page, only for a value.
        super().__init__(value=value, label="Enable", elem_id=elem_id, **{**kwargs, "render": False})

    def __enter__(self) -> InputAccordion:
        self.accordion.__enter__()
        self.render()
        self.change(lambda on: gr.update(open=on), [self], [self.accordion], show_progress="hidden", queue=False)
        return self

    def __exit__(self, *exc: Any) -> None:
        self.accordion.__exit__(*exc)

    def get_config(self) -> dict[str, Any]:
        """The component for the page. Gradio reads its signature, where `**kwargs` hides what the page needs."""
        shown = {"visible": self.visible, "interactive": self.interactive, "container": self.container}
        return {**super().get_config(), **shown}

    def get_block_name(self) -> str:
        """Gradio's front end knows no InputAccordion: it is to be drawn as the checkbox it is."""
        return "checkbox"

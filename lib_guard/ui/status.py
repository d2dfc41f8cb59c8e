"""The last generation in words, for the accordion."""

from __future__ import annotations

from html import escape

from ..findings import CODES, outcome
from ..ledger import Entry, Generation

#: What is said of a generation without findings, by its outcome.
_NOTHING = {
    "running": "A generation is running; nothing has been wrong so far.",
    "finished": "Last generation: nothing was wrong.",
    "failed": "Last generation: it failed, and LibGuard noted nothing.",
}


def summary(generation: Generation | None) -> str:
    """A few words for the accordion's closed header; empty when there is nothing to say."""
    if generation is None or not generation.entries:
        return ""
    repaired, left = len(generation.repaired), len(generation.entries) - len(generation.repaired)
    parts = [f"{repaired} repaired"] if repaired else []
    parts += [f"{left} noted"] if left else []
    return ", ".join(parts)


def status_html(generation: Generation | None) -> str:
    """The status under the switches: one paragraph a cause. Every value is escaped, wherever it came from."""
    if generation is None:
        body = "<p>No generation yet.</p>"
    elif not generation.entries:
        body = f"<p>{_NOTHING[generation.outcome]}</p>"
    else:
        body = "".join(_paragraph(entry) for entry in generation.entries)
        if generation.crowded:
            body += f"<p>and {generation.crowded} more findings</p>"
    data = {"summary": summary(generation), "outcome": generation.outcome if generation else ""}
    attributes = " ".join(f'data-{name}="{escape(value, quote=True)}"' for name, value in data.items())
    return f'<div class="lib-guard-status" {attributes}>{body}</div>'


def _paragraph(entry: Entry) -> str:
    finding, repair = entry.finding, entry.repair
    code = CODES[finding.code]
    times = f" ({entry.count} times)" if entry.count > 1 else ""
    kind = "repaired" if repair else "noted"
    return (
        f'<p class="lib-guard-{kind}"><b>{escape(finding.code)}</b> {escape(code.title)}{times}.<br>'
        f"{escape(finding.saw)}.<br><b>{escape(outcome(finding, repair))}</b><br>"
        f"Permanent fix: {escape(finding.permanent_fix or code.permanent_fix)}</p>"
    )

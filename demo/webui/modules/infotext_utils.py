"""The text under a picture, in A1111's form: written, and read back."""

from __future__ import annotations

import json
import re
from typing import Any

PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
NEGATIVE = "Negative prompt:"


def quote(value: Any) -> str:
    """The value as text, in JSON quotes when it holds a comma, a colon or a line break."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def unquote(text: str) -> str:
    """The reverse of `quote`; text that only looks quoted is handed back as it is."""
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def build(prompt: str, negative: str, parameters: dict[str, Any]) -> str:
    """The infotext; parameters that are None are left out."""
    pairs = [f"{key}: {quote(value)}" for key, value in parameters.items() if value is not None]
    lines = [prompt, f"{NEGATIVE} {negative}" if negative else "", ", ".join(pairs)]
    return "\n".join(line for line in lines if line)


def parse_generation_parameters(text: str) -> dict[str, Any]:
    """The infotext's values by name, all as text; "Prompt", "Negative prompt" and "Size-1", "Size-2" among them."""
    *head, last = text.strip().split("\n")
    if len(PAIR.findall(last)) < 3:
        head, last = [*head, last], ""
    cut = next((index for index, line in enumerate(head) if line.startswith(NEGATIVE)), len(head))
    values: dict[str, Any] = {
        "Prompt": "\n".join(head[:cut]).strip(),
        "Negative prompt": "\n".join(head[cut:])[len(NEGATIVE) :].strip(),
    }
    for key, value in PAIR.findall(last):
        plain = unquote(value.strip())
        values[key.strip()] = plain
        size = re.fullmatch(r"(\d+)x(\d+)", plain)
        if size:
            values[f"{key.strip()}-1"], values[f"{key.strip()}-2"] = size.groups()
    return values

"""Foreign words in our sentences: names of files, values of requests."""

from __future__ import annotations


def on_one_line(text: str, most: int) -> str:
    """A foreign text without line breaks or control characters, cut to `most` characters."""
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"

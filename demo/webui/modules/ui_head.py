"""What goes into the page's head: the host's own script and style, then those of every extension."""

from __future__ import annotations

from pathlib import Path

from modules import paths


def head() -> str:
    """The head's HTML. Files are put in whole: there is no route that serves an extension's folder."""
    own = Path(paths.script_path)
    scripts = [own / "script.js"]
    styles = [own / "style.css"]
    for folder in paths.folders.extensions:
        scripts += sorted((folder / "javascript").glob("*.js"))
        styles += [path for path in [folder / "style.css"] if path.is_file()]
    tags = [f"<style>\n{_text(path)}\n</style>" for path in styles]
    tags += [f"<script>\n{_text(path)}\n</script>" for path in scripts]
    return "\n".join(tags)


def _text(path: Path) -> str:
    # A closing tag inside a string would end the element here; "<\\/" means the same to JavaScript.
    return path.read_text(encoding="utf-8").replace("</script", "<\\/script")

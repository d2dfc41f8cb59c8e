"""Which commit a folder is a checkout of, read from git's files; no git is run. Only the standard library."""

from __future__ import annotations

import re
from pathlib import Path

_HASH = re.compile(r"[0-9a-f]{40}")


def commit_of(folder: Path) -> str:
    """The full hash that is checked out; empty when the folder is no checkout, or its files cannot be read."""
    git = _git_folder(folder)
    if git is None:
        return ""
    head = _text(git / "HEAD")
    if not head.startswith("ref:"):
        return _hash(head)
    name = head.partition(":")[2].strip()
    common = _common(git)
    return _hash(_text(git / name)) or _hash(_text(common / name)) or _packed(common, name)


def _git_folder(folder: Path) -> Path | None:
    """`.git`, which in a work tree or a submodule is a file that names the folder."""
    git = folder / ".git"
    if git.is_file():
        named = _text(git).partition("gitdir:")[2].strip()
        git = folder / named
    return git if git.is_dir() else None


def _common(git: Path) -> Path:
    """Where a work tree's branches are."""
    named = _text(git / "commondir")
    return git / named if named else git


def _packed(git: Path, name: str) -> str:
    lines = _text(git / "packed-refs").splitlines()
    return next((_hash(line) for line in lines if line.endswith(f" {name}")), "")


def _hash(text: str) -> str:
    found = _HASH.match(text)
    return found.group(0) if found else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""

"""Seams: the things of a host that LibGuard relies on, each declared once and checked in two ways.

Live, in the running host, before anything is attached; and from outside, in the host's source, without starting it.
A host that has changed then costs one exact line and one guard, never a traceback in somebody's generation.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..findings import LIBGUARD


@dataclass(frozen=True)
class Seam:
    """One thing of a host.

    module: as it is imported (`modules.processing`). attribute: dotted, inside it; empty for the module itself.
    parameters: names that a call must take. source: file and line where it was read, in the version named by the
    adapter. meaning: what LibGuard takes it for. guards: which guards need it; `LIBGUARD` when everything does.
    set_at_run_time: the attribute is not spelt in the module's source (assigned from elsewhere), so only the running
    host can be asked for it.
    """

    module: str
    attribute: str
    source: str
    meaning: str
    parameters: tuple[str, ...] = ()
    guards: tuple[str, ...] = (LIBGUARD,)
    set_at_run_time: bool = False

    @property
    def name(self) -> str:
        """`modules.processing.StableDiffusionProcessing.close`."""
        return f"{self.module}.{self.attribute}" if self.attribute else self.module


def problem_live(seam: Seam) -> str:
    """What is wrong with a seam in this process; empty when it is there. Imports the seam's module."""
    try:
        found: object = importlib.import_module(seam.module)
    except ImportError as error:
        return f"{seam.module} cannot be imported ({type(error).__name__})"
    for part in filter(None, seam.attribute.split(".")):
        if not hasattr(found, part):
            return f"{seam.name} is missing"
        found = getattr(found, part)
    return _lacking(seam, _parameters(found)) if seam.parameters else ""


def problem_in_source(seam: Seam, folder: Path) -> str:
    """What is wrong with a seam in a host's folder; empty when it is there. Reads the file and executes nothing."""
    path = _file(seam.module, folder)
    if path is None:
        return f"{seam.module} has no file"
    if not seam.attribute or seam.set_at_run_time:
        return ""
    try:
        node: ast.AST | None = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
    except SyntaxError as error:
        return f"{path.name} is not Python that can be read (line {error.lineno})"
    for part in seam.attribute.split("."):
        node = _named(node, part) if node is not None else None
    if node is None:
        return f"{seam.name} is missing"
    if seam.parameters and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        arguments = node.args
        names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        return _lacking(seam, None if arguments.kwarg else names)
    return ""


def missing(seams: Sequence[Seam]) -> dict[str, list[str]]:
    """The guards that this process's host cannot serve, each with what it lacks."""
    found: dict[str, list[str]] = {}
    for seam in seams:
        problem = problem_live(seam)
        for guard in seam.guards if problem else ():
            found.setdefault(guard, []).append(problem)
    return found


def _parameters(call: object) -> list[str] | None:
    """The names of a callable's parameters; None when it takes any, or does not tell."""
    try:
        parameters = inspect.signature(call).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    return None if takes_any else [parameter.name for parameter in parameters]


def _lacking(seam: Seam, names: Sequence[str] | None) -> str:
    lacking = [name for name in seam.parameters if names is not None and name not in names]
    return f"{seam.name} takes no {', '.join(lacking)}" if lacking else ""


def _file(module: str, folder: Path) -> Path | None:
    base = folder.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _named(node: ast.AST, name: str) -> ast.AST | None:
    """What a name is bound to in a module's or a class's body: a definition, an assignment, or an import.

    Bindings inside `if`, `try` and `with` count; those inside functions only where they are attributes of `self`.
    """
    for child in ast.walk(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and child.name == name:
            return child
        stored = isinstance(child, (ast.Name, ast.Attribute)) and isinstance(child.ctx, ast.Store)
        if stored and name == getattr(child, "id", getattr(child, "attr", None)):
            return child
        if isinstance(child, ast.alias) and name == (child.asname or child.name).split(".")[0]:
            return child
    return None

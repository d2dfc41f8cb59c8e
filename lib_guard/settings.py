"""The one schema of what a user can set: accordion, script args, the host's settings, and infotext all come from it.

Everything is a JSON primitive, so that a request can be saved, replayed and sent on to another machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .wording import on_one_line

OFF, WARN, FIX = "off", "warn", "fix"

#: What a guard may do. The spelling that a user sees, and the one that requests and settings carry.
POLICIES = {"Off": OFF, "Warn": WARN, "Fix": FIX}

#: The dtype that VAE encode and decode compute in; `auto` leaves it to the VAE.
VAE_PRECISIONS = {"Auto": "auto", "float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}


@dataclass(frozen=True)
class Field:
    """One switch.

    name: the attribute of `Settings`. label: what the user reads. info: the explanation under it.
    choices: shown spelling -> value; None for a checkbox. infotext: the key under which a picture carries it.
    """

    name: str
    label: str
    info: str
    choices: Mapping[str, str] | None
    infotext: str

    @property
    def option(self) -> str:
        """The key in the host's settings that holds this switch's default."""
        return f"lib_guard_{self.name}"


#: In the order of the script args. New ones are only ever added at the end: saved requests are positional.
FIELDS = (
    Field("enabled", "Enable LibGuard", "Off: nothing is attached to the model and nothing is looked at.", None, ""),
    Field(
        "precision",
        "Precision guard",
        "Every part of the model. Fix: an operation that would fail because two dtypes meet is computed in the right"
        " one. Warn: only say so. Off: not looked at.",
        POLICIES,
        "LibGuard precision",
    ),
    Field(
        "vae_precision",
        "VAE precision",
        "What VAE encode and decode compute in, without converting the VAE. Auto leaves it as it is."
        " Needs the precision guard.",
        VAE_PRECISIONS,
        "LibGuard VAE precision",
    ),
    Field(
        "finite",
        "Finite guard",
        "Black pictures. Fix: what overflows in VAE encode or decode is computed again in float32."
        " Warn: only say so. Off: not looked at.",
        POLICIES,
        "LibGuard finite",
    ),
    Field(
        "lora",
        "LoRA guard",
        "LoRAs that stay in the model. Fix: the weights are brought back to the checkpoint's, bit for bit."
        " Warn: only say so. Off: not looked at.",
        POLICIES,
        "LibGuard LoRA",
    ),
    Field(
        "encoder",
        "Encoder guard",
        "IP-Adapters. Fix: each is given the image encoder that it was made for, where that is on disk, and none stays"
        " in the model. Warn: only say so. Off: not looked at.",
        POLICIES,
        "LibGuard encoder",
    ),
)


@dataclass(frozen=True)
class Settings:
    """The switches of one request. The defaults here are those of a fresh install."""

    enabled: bool = True
    precision: str = FIX
    vae_precision: str = "auto"
    finite: str = FIX
    lora: str = FIX
    encoder: str = FIX

    def policy(self, guard: str) -> str:
        """The policy of a guard by its name; `off` while LibGuard as a whole is."""
        return str(getattr(self, guard)) if self.enabled else OFF

    def values(self) -> list[bool | str]:
        """The switches in the order of the script args."""
        return [getattr(self, field.name) for field in FIELDS]


def from_args(args: Sequence[object], defaults: Settings) -> tuple[Settings, list[str]]:
    """The settings of a request from its script args, and one clause for every argument that could not be used.

    Hosts hand over what an API client sent, unchecked (modules/api/api.py of AUTOMATIC1111 1.10.1; SD.Next does not
    even fill up a short list): missing ones take their default silently, wrong ones take it with a clause.
    """
    if isinstance(args, (str, bytes, Mapping)) or not isinstance(args, Sequence):
        return defaults, [f"the arguments are {_kind(args)}, not a list of {len(FIELDS)}"]
    settings, problems = defaults, []
    for field, value in zip(FIELDS, args):
        settings, problem = _with(settings, field, value)
        problems += [problem] if problem else []
    if len(args) > len(FIELDS):
        problems.append(f"{len(args)} arguments came where there are {len(FIELDS)}; the rest is ignored")
    return settings, problems


def from_options(options: Mapping[str, object]) -> tuple[Settings, list[str]]:
    """The defaults from the host's settings, and one clause for every value that could not be used.

    options: the host's settings by key; keys that are missing are defaults, as on a fresh install.
    """
    settings, problems = Settings(), []
    for field in FIELDS:
        if field.option in options:
            settings, problem = _with(settings, field, options[field.option])
            problems += [problem] if problem else []
    return settings, problems


def from_infotext(parameters: Mapping[str, object]) -> dict[str, bool | str]:
    """The switches that a picture's infotext carries, by field name; only those that it carries and that are valid.

    A picture in which LibGuard acted carries them; any other says nothing about LibGuard, and changes no switch.
    """
    found: dict[str, bool | str] = {}
    for field in FIELDS:
        if field.infotext in parameters:
            value, problem = _parse(field, parameters[field.infotext])
            found |= {} if problem else {field.name: value}
    return found | ({"enabled": True} if found else {})


def to_infotext(settings: Settings) -> dict[str, str]:
    """What a picture carries so that pasting it restores the switches."""
    return {field.infotext: str(getattr(settings, field.name)) for field in FIELDS if field.infotext}


def shown(field: Field, value: bool | str) -> bool | str:
    """The spelling that a user sees for a value (`Fix` for `fix`)."""
    if field.choices is None:
        return value
    return next((label for label, choice in field.choices.items() if choice == value), str(value))


def _with(settings: Settings, field: Field, value: object) -> tuple[Settings, str]:
    parsed, problem = _parse(field, value)
    if problem:
        kept = shown(field, getattr(settings, field.name))
        return settings, f"{field.name} {problem}; {kept!r} is used"
    changed: dict[str, Any] = {field.name: parsed}
    return replace(settings, **changed), ""


def _parse(field: Field, value: object) -> tuple[bool | str, str]:
    """The value of a field, and why it is none of it (then the value means nothing)."""
    if field.choices is None:
        if isinstance(value, bool):
            return value, ""
        return False, f"is {_kind(value)}, not true or false"
    if not isinstance(value, str):
        return "", f"is {_kind(value)}, not one of {_listed(field)}"
    wanted = value.strip().lower()
    for label, choice in field.choices.items():
        if wanted in (label.lower(), choice):
            return choice, ""
    return "", f"is the unknown word {on_one_line(value, 24)!r}, not one of {_listed(field)}"


def _listed(field: Field) -> str:
    return ", ".join((field.choices or {}).values())


def _kind(value: object) -> str:
    """What a value is, without repeating it: it may be long, hostile or private."""
    if value is None:
        return "empty"
    if isinstance(value, float) and not math.isfinite(value):
        return "a number that is not finite"
    kinds = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        dict: "an object",
        list: "a list",
    }
    return next((word for kind, word in kinds.items() if isinstance(value, kind)), f"a {type(value).__name__}")

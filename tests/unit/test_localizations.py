"""Translations match what the page shows, or a WebUI would silently not translate it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lib_guard.settings import FIELDS

FILES = sorted((Path(__file__).resolve().parents[2] / "localizations").glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_text_of_the_accordion_is_translated_and_none_that_it_has_not(path):
    translated = json.loads(path.read_text(encoding="utf-8"))
    shown = {text for field in FIELDS for text in (field.label, field.info)}
    assert set(translated) == shown and all(translated.values())

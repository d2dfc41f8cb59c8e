"""One schema, and nothing that a request or a settings file holds can break a generation."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_guard.settings import FIELDS, OFF, Settings, from_args, from_infotext, from_options, shown, to_infotext

DEFAULTS = Settings()
SETTINGS = st.builds(
    Settings,
    enabled=st.booleans(),
    precision=st.sampled_from(["off", "warn", "fix"]),
    vae_precision=st.sampled_from(["auto", "float32", "bfloat16", "float16"]),
    finite=st.sampled_from(["off", "warn", "fix"]),
    lora=st.sampled_from(["off", "warn", "fix"]),
    encoder=st.sampled_from(["off", "warn", "fix"]),
)


def test_the_schema_has_a_field_for_every_setting_in_order():
    assert [field.name for field in FIELDS] == [field.name for field in dataclasses.fields(Settings)]
    assert all(field.info and field.label for field in FIELDS)


@given(SETTINGS)
def test_script_args_round_trip_as_json(settings):
    assert from_args(json.loads(json.dumps(settings.values())), DEFAULTS) == (settings, [])


@given(SETTINGS)
def test_shown_spellings_mean_the_same(settings):
    as_shown = [shown(field, getattr(settings, field.name)) for field in FIELDS]
    assert from_args(as_shown, DEFAULTS) == (settings, [])
    assert from_options({field.option: value for field, value in zip(FIELDS, as_shown)}) == (settings, [])


@given(SETTINGS)
def test_infotext_restores_the_switches(settings):
    restored = from_infotext(to_infotext(settings))
    assert restored == {
        "enabled": True,
        "precision": settings.precision,
        "vae_precision": settings.vae_precision,
        "finite": settings.finite,
        "lora": settings.lora,
        "encoder": settings.encoder,
    }


@pytest.mark.parametrize("parameters", [{}, {"Seed": "1"}, {"LibGuard precision": "<b>"}, {"LibGuard precision": None}])
def test_an_infotext_without_valid_switches_changes_none(parameters):
    assert from_infotext(parameters) == {}


@pytest.mark.parametrize(
    ("args", "problems"),
    [
        ([], 0),
        ([True], 0),
        ([True, "warn"], 0),
        ([True, "WARN ", " Float16"], 0),
        ([True, "fix", "auto", "fix", "fix", "fix", 2], 1),
        (["yes"], 1),
        ([None, None, None], 3),
        ([True, "repair"], 1),
        ([True, math.nan, math.inf], 2),
        ([{"enabled": False}], 1),
        ([True, {"a": 1}, ["auto"]], 2),
        ({"enabled": False}, 1),
        ("off", 1),
        (None, 1),
        (3, 1),
        ([True, "x" * 10_000], 1),
        ([True, "<script>\nalert(1)</script>"], 1),
    ],
)
def test_bad_arguments_take_the_default_with_one_clause_each(args, problems):
    settings, clauses = from_args(args, DEFAULTS)
    assert len(clauses) == problems
    assert all(len(clause) < 160 and "\n" not in clause for clause in clauses)
    assert settings.precision in ("fix", "warn") and settings.enabled is True


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(JSON)
def test_no_argument_at_all_raises(anything):
    settings, clauses = from_args(anything, DEFAULTS)
    assert isinstance(settings, Settings) and all(isinstance(clause, str) for clause in clauses)


@given(JSON)
def test_no_stored_option_at_all_raises(anything):
    settings, clauses = from_options({FIELDS[1].option: anything})
    assert settings.precision in ("off", "warn", "fix") and len(clauses) <= 1


def test_missing_options_are_a_fresh_install():
    assert from_options({"other": 1}) == (DEFAULTS, [])


def test_defaults_of_the_user_stand_in_for_what_is_missing_or_wrong():
    users = Settings(precision="warn", vae_precision="float32")
    assert from_args([True, 7], users)[0] == users


def test_off_as_a_whole_is_off_for_every_guard():
    assert Settings(enabled=False).policy("precision") == OFF
    assert Settings().policy("precision") == "fix"

"""An error of LibGuard's own is caught once, said once, and switches one guard off."""

from __future__ import annotations

import pytest

from lib_guard.border import Border
from lib_guard.findings import Finding
from lib_guard.tensors.census import take_census


def broken() -> int:
    raise ValueError("a mistake of ours")


def test_a_failing_guard_is_off_until_the_next_request():
    said: list[Finding] = []
    border = Border(said.append)
    assert border.run("precision", "looking", broken, 7) == 7
    assert border.run("precision", "looking", lambda: 1, 7) == 7
    assert border.run("lora", "looking", lambda: 1, 7) == 1
    assert [finding.code for finding in said] == ["LG001"] and "ValueError" in said[0].saw
    border.reset()
    assert border.run("precision", "looking", lambda: 1, 7) == 1


def test_cleaning_up_happens_also_after_a_failure():
    border = Border(lambda finding: None)
    border.run("precision", "looking", broken, None)
    assert border.always("precision", "cleaning", lambda: "cleaned", None) == "cleaned"


def test_interrupts_pass_through():
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Border(lambda finding: None).run("precision", "looking", interrupt, None)


def test_the_place_is_named_without_anybodys_folder():
    said: list[Finding] = []
    Border(said.append).run("precision", "counting", lambda: take_census(None), None)  # type: ignore[arg-type]
    assert said[0].evidence["place"].startswith("tensors/census.py:")

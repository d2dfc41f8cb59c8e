"""What reaches the console: one handler, no home folder, no double lines."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from lib_guard import console
from lib_guard.findings import Finding


@pytest.fixture(autouse=True)
def _as_before():
    yield
    console.set_up("normal")


def say() -> None:
    console.say(Finding("LG101", "precision", "vae", "decode", "it was wrong"), None)


def test_a_line_is_plain_in_a_file(capsys):
    console.set_up("normal")
    say()
    text = capsys.readouterr().err
    assert text.startswith("[LibGuard] LG101 precision: it was wrong -> ") and text.count("\n") == 1


def test_setting_up_again_does_not_double_the_lines(capsys):
    console.set_up("normal")
    console.set_up("normal")
    say()
    assert capsys.readouterr().err.count("LG101") == 1


def test_the_hosts_own_loggers_get_nothing(capsys, caplog):
    console.set_up("normal")
    with caplog.at_level(logging.DEBUG):
        say()
    assert caplog.records == []


@pytest.mark.parametrize(("level", "lines"), [("normal", 2), ("warnings only", 1), ("silent", 0), ("nonsense", 2)])
def test_the_level_is_the_users(capsys, level, lines):
    console.set_up(level)
    console.LOGGER.info("started")
    say()
    assert capsys.readouterr().err.count("[LibGuard]") == lines


def test_a_terminal_gets_colours_unless_it_is_told_not_to(monkeypatch, capsys):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    console.set_up("normal")
    say()
    assert "\x1b[33m[LibGuard]\x1b[0m LG101" in capsys.readouterr().err
    monkeypatch.setenv("NO_COLOR", "1")
    console.set_up("normal")
    say()
    assert "\x1b" not in capsys.readouterr().err


def test_the_home_folder_is_never_named(capsys):
    console.set_up("normal")
    console.LOGGER.warning("%s", Path.home() / "models" / "x.safetensors")
    text = capsys.readouterr().err
    assert str(Path.home()) not in text and "~" in text


def test_a_host_that_shares_its_handlers_keeps_them_and_prints_the_name(capsys):
    """SD.Next gives every logger the list of its own handlers, the very object, once it is up (webui.py:432)."""
    host = logging.getLogger("a-host-of-the-tests")
    host.handlers = [logging.StreamHandler()]
    console.set_up("normal")
    console.LOGGER.handlers = host.handlers
    say()
    assert capsys.readouterr().err.startswith("[LibGuard] LG101")
    before = list(host.handlers)
    console.set_up("normal")
    assert host.handlers == before and console.LOGGER.handlers is not host.handlers
    say()
    assert capsys.readouterr().err.count("[LibGuard]") == 1

"""The one line that a user reads, and the codes behind it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_guard.findings import CODES, Finding, Repair, sentence

ROOT = Path(__file__).resolve().parents[2]


def finding(**changes) -> Finding:
    return Finding(
        **{"code": "LG101", "guard": "precision", "component": "vae", "direction": "decode", "saw": "x"} | changes
    )


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_documented_with_its_cause_and_permanent_fix(code):
    text = (ROOT / "docs" / "codes.md").read_text(encoding="utf-8")
    heading = f"\n## {code}\n"
    assert heading in text, f"docs/codes.md has no section for {code}, so the console's address leads nowhere"
    section = text.split(heading)[1].split("\n## ")[0]
    assert CODES[code].title in section and "Permanent fix" in section and "Cause" in section


@pytest.mark.parametrize("code", CODES)
def test_every_code_says_all_its_parts_in_sentences(code):
    entry = CODES[code]
    for text in (entry.cause, entry.cure, entry.permanent_fix):
        assert text[0].isupper() and text.endswith(".")
    assert not entry.title.endswith(".")


def test_the_line_has_what_was_wrong_what_was_done_and_how_to_be_rid_of_it():
    repair = Repair("decoded in float32", "result finite", 0.349)
    line = sentence(finding(saw="VAE decode got float16 latents", cause="Because.", permanent_fix="Do that."), repair)
    assert line == (
        "LG101 precision: VAE decode got float16 latents -> decoded in float32, result finite, 0.3 ms."
        " Cause: Because. Permanent fix: Do that. (docs/codes.md#lg101)"
    )


def test_a_repair_without_proof_is_said_to_be_unproven():
    assert "decoded, not proven, 1.0 ms" in sentence(finding(), Repair("decoded", "", 1.0))


def test_a_finding_left_alone_says_so():
    assert "-> left as it is (policy Warn)." in sentence(finding(), None)


def test_line_breaks_cannot_come_in():
    assert "\n" not in sentence(finding(saw="a\nb\r\n\tc"), None)


def test_an_unknown_code_is_refused():
    with pytest.raises(ValueError, match="LG999 is no code"):
        finding(code="LG999")

"""docs/coverage.md counts what its own tables say, and names rows and codes in their form."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from test_explain import REPORTS as EXPLAINED_TEXTS
from test_explain import names_the_cause

from lib_guard.findings import CODES

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "coverage.md").read_text(encoding="utf-8")
PREVENTED, EXPLAINED, OUT, NOT_OURS = "prevented", "explained", "out of reach", "not ours (tool)"
#: In the cell of rows and codes: the command tells the cause from the error's text.
EXPLAIN = "explain"
ROW, CODE = re.compile(r"P(0[1-9]|1[0-7])|N0[12]|L(0[1-9]|1[0-8])|E0[1-6]"), re.compile(r"LG[0-4]\d\d")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def section(heading: str) -> str:
    return TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]


SUMMARY = {row[0]: row[1:] for row in map(cells, section("Summary").splitlines()) if row[-1].endswith("%")}
FAMILIES = [family for family in SUMMARY if family != "all"]
REPORTS = {
    family: [cells(line) for line in section(family).splitlines() if re.match(r"\| R\d{3} \|", line)]
    for family in FAMILIES
}
ALL = [report for reports in REPORTS.values() for report in reports]
#: Sections that are about all families.
OF_ALL = {"Summary", "How a verdict is given", "Out of reach"}


def named(report: list[str]) -> list[str]:
    """Rows and codes of a report, and whether `explain` tells its cause."""
    return [] if report[5] == "-" else report[5].split(", ")


def percent(part: int, whole: int) -> str:
    return f"{round(100 * part / whole)} %"


@pytest.mark.parametrize("family", SUMMARY)
def test_the_summary_counts_the_tables(family: str) -> None:
    reports = ALL if family == "all" else REPORTS[family]
    count = Counter(report[4] for report in reports)
    known = sum(report[4] == NOT_OURS and any(map(ROW.fullmatch, named(report))) for report in reports)
    told = sum(EXPLAIN in named(report) for report in reports)
    reached, ours, whole = count[PREVENTED] + count[EXPLAINED], len(reports) - count[NOT_OURS], len(reports)
    numbers = [whole, *(count[verdict] for verdict in (PREVENTED, EXPLAINED, OUT, NOT_OURS)), known, told]
    percents = [percent(reached, ours), percent(reached, whole), percent(reached + told, whole)]
    assert SUMMARY[family] == [*map(str, numbers), *percents]


def test_every_family_with_reports_is_in_the_summary() -> None:
    sections = re.findall(r"^## (.+)$", TEXT, re.MULTILINE)
    assert sections == ["Summary", *[name for name in sections[1:] if name in OF_ALL], *FAMILIES]
    assert len(ALL) == len(re.findall(r"^\| R\d{3} \|", TEXT, re.MULTILINE)) == len({report[0] for report in ALL})


def test_codes_are_those_of_libguard() -> None:
    assert {name for report in ALL for name in named(report) if CODE.fullmatch(name)} <= CODES.keys()


def test_what_explain_is_said_to_tell_it_tells() -> None:
    marked = {report[0] for report in ALL if EXPLAIN in named(report)}
    assert marked == EXPLAINED_TEXTS.keys()
    assert [report for report in sorted(marked) if not names_the_cause(report)] == []


def test_the_aim_quotes_the_summary() -> None:
    *_, of_ours, of_all, with_explain = SUMMARY["all"]
    text = " ".join(section("Summary").split())
    assert f"all together to {of_ours}" in text and f"from {of_all} of all reports to {with_explain}" in text


@pytest.mark.parametrize("family", FAMILIES)
def test_reports_are_whole_and_in_order(family: str) -> None:
    ids = [report[0] for report in REPORTS[family]]
    assert ids and ids == sorted(set(ids))
    for report in REPORTS[family]:
        assert len(report) == 7 and all(report), report
        assert re.fullmatch(r"\[.+]\(https://github\.com/[^/]+/[^/]+/(issues|pull)/\d+\)", report[1]), report


@pytest.mark.parametrize("report", ALL, ids=lambda report: report[0])
def test_a_verdict_has_what_shows_it(report: list[str]) -> None:
    verdict, names = report[4], named(report)
    rows, codes = [name for name in names if ROW.fullmatch(name)], [name for name in names if CODE.fullmatch(name)]
    told = [EXPLAIN] * (EXPLAIN in names)
    assert rows + codes + told == names
    none = not rows and not codes
    assert {PREVENTED: rows and codes, EXPLAINED: codes, OUT: none, NOT_OURS: not codes}[verdict]
    assert verdict in (OUT, NOT_OURS) or not told


def test_every_report_that_is_out_of_reach_has_its_reason() -> None:
    listed = set(re.findall(r"R\d{3}", section("Out of reach")))
    assert listed == {report[0] for report in ALL if report[4] == OUT}


def test_rows_and_codes_in_the_text_have_their_form() -> None:
    assert all(ROW.fullmatch(name) for name in re.findall(r"\b[PNLE]\d+\b", TEXT))
    assert all(CODE.fullmatch(name) for name in re.findall(r"\bLG\w+\b", TEXT))
    explained = set(re.findall(r"^\| ([PNLE]\d\d) \|", section("How a verdict is given"), re.MULTILINE))
    assert {name for report in ALL for name in named(report) if ROW.fullmatch(name)} <= explained

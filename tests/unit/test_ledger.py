"""The record is bounded, counts repetitions, and holds from many threads."""

from __future__ import annotations

import json
import threading

from lib_guard.findings import Finding, Repair
from lib_guard.ledger import CAUSES_A_GENERATION, Ledger


def finding(component: str = "vae", direction: str = "decode") -> Finding:
    return Finding("LG101", "precision", component, direction, "saw", {"operations": 1})


def test_a_cause_is_new_once_and_counted_afterwards():
    ledger = Ledger()
    generation = ledger.open("txt2img")
    assert ledger.add(generation, finding(), Repair("did", "proof", 1.5)) is True
    assert ledger.add(generation, finding(), Repair("did", "proof", 2.0)) is False
    assert ledger.add(generation, finding(direction="encode"), None) is True
    assert [(e.count, e.milliseconds) for e in generation.entries] == [(2, 3.5), (1, 0.0)]
    assert len(generation.repaired) == 1


def test_the_same_cause_is_new_again_in_the_next_generation():
    ledger = Ledger()
    assert all(ledger.add(ledger.open("txt2img"), finding(), None) for _ in range(2))


def test_it_keeps_the_newest_generations_and_a_bounded_number_of_causes():
    ledger = Ledger(capacity=3)
    for _ in range(10):
        generation = ledger.open("txt2img")
    assert [g.number for g in ledger.generations()] == [8, 9, 10]
    for index in range(CAUSES_A_GENERATION + 5):
        ledger.add(generation, finding(component=str(index)), None)
    assert len(generation.entries) == CAUSES_A_GENERATION and generation.crowded == 5


def test_the_last_one_of_a_tab():
    ledger = Ledger()
    assert ledger.last() is None
    first, second = ledger.open("txt2img"), ledger.open("img2img")
    assert ledger.last("txt2img") is first and ledger.last() is second


def test_it_ends_once():
    ledger = Ledger()
    generation = ledger.open("txt2img")
    ledger.close(generation, "finished")
    ledger.close(generation, "failed")
    assert generation.outcome == "finished"


def test_its_primitives_are_json():
    ledger = Ledger()
    ledger.add(ledger.open("txt2img"), finding(), Repair("did", "", 1.0))
    row = json.loads(json.dumps(ledger.primitives()))[0]["entries"][0]
    assert row["code"] == "LG101" and row["evidence"] == {"operations": 1} and row["proof"] == ""


def test_many_threads_lose_no_count():
    ledger = Ledger()
    generation = ledger.open("txt2img")
    threads = [
        threading.Thread(target=lambda: [ledger.add(generation, finding(), None) for _ in range(500)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert generation.entries[0].count == 4000

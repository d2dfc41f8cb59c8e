"""What the pages show, and that nothing of a finding reaches them unescaped."""

from __future__ import annotations

import gradio as gr
import pytest

from lib_guard.findings import Finding, Repair
from lib_guard.ledger import Ledger
from lib_guard.settings import FIELDS, Settings
from lib_guard.ui import accordion, settings_page
from lib_guard.ui.status import status_html, summary


def build(settings: Settings = Settings()) -> accordion.Accordion:  # noqa: B008 - it is frozen
    with gr.Blocks():
        return accordion.build(settings, Ledger(), "txt2img", lambda name: f"script_txt2img_libguard_{name}")


def test_one_control_a_field_in_the_order_of_the_script_args():
    built = build(Settings(enabled=False, precision="warn", vae_precision="bfloat16"))
    assert [control.elem_id.rsplit("libguard_")[1] for control in built.controls] == [field.name for field in FIELDS]
    assert [control.value for control in built.controls] == [False, "Warn", "bfloat16", "Fix", "Fix", "Fix"]


def test_a_guard_has_the_three_policies_and_the_vae_its_precisions():
    _, precision, vae, finite, lora, encoder = build().controls
    labels = [[label for label, _ in control.choices] for control in (precision, vae, finite, lora, encoder)]
    policies = ["Off", "Warn", "Fix"]
    assert labels == [policies, ["Auto", "float32", "bfloat16", "float16"], policies, policies, policies]


def test_pasting_an_infotext_sets_the_switches_that_it_carries():
    fields = build().infotext_fields()
    carried = {"LibGuard precision": "warn", "LibGuard VAE precision": "float32"}
    assert [read(carried) for _, read in fields] == [True, "Warn", "float32", None, None, None]
    assert [read({"Seed": "1", "LibGuard precision": "<img>"}) for _, read in fields] == [None] * 6


def generation(*entries):
    ledger = Ledger()
    opened = ledger.open("txt2img")
    for finding, repair in entries:
        ledger.add(opened, finding, repair)
    return opened


def finding(saw: str = "saw", direction: str = "decode") -> Finding:
    return Finding("LG101", "precision", "vae", direction, saw, permanent_fix="fix <b>")


def test_the_status_before_and_after_a_healthy_generation():
    assert "No generation yet" in status_html(None) and "is running" in status_html(generation())
    for outcome, words in (("finished", "nothing was wrong"), ("failed", "it failed")):
        ended = generation()
        ended.outcome = outcome
        assert words in status_html(ended)
    assert summary(None) == summary(generation()) == ""


def test_the_status_of_a_repaired_and_of_a_noted_fault():
    both = generation((finding(), Repair("decoded", "finite", 1.0)), (finding(direction="encode"), None))
    html = status_html(both)
    assert summary(both) == "1 repaired, 1 noted" and 'data-summary="1 repaired, 1 noted"' in html
    assert html.count("LG101") == 2 and "decoded, finite, 1.0 ms" in html and "left as it is" in html


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "<b>" * 1000])
def test_no_markup_of_a_finding_reaches_the_page(hostile):
    html = status_html(generation((finding(saw=hostile), None)))
    assert "<script" not in html and "<img" not in html and "fix <b>" not in html and "<b><b>" not in html


def test_the_settings_page_adds_an_option_for_every_field():
    added = {}

    class Shared:
        class opts:  # noqa: N801 - the host's name
            add_option = staticmethod(lambda key, info: added.update({key: info}))

        @staticmethod
        def OptionInfo(default, label, component, arguments, section):  # noqa: N802 - the host's name
            component(value=default, label=label, **arguments)
            return default, section

    settings_page.add_options(Shared)
    assert {field.option for field in FIELDS} < set(added) and "lib_guard_console" in added
    assert added["lib_guard_precision"] == ("Fix", ("lib_guard", "LibGuard"))

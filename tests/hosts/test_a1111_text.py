"""Row P14 on AUTOMATIC1111: a textual inversion in another dtype than the text encoder.

The host makes the vectors of its embeddings folder float32 and casts what it has put together back
(textual_inversion.py:293-306, sd_hijack.py:362), so that those always pass. Vectors that an extension has registered in
its file's dtype do not: autocast, which the host runs under unless it was started with --no-half, --precision half or
--upcast-sampling, refuses to join float16 and bfloat16.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from a1111_rows import FLAGS, PIXEL_HIRES, forget, loaded, settle, start
from harness.keeper import Host, Keeper
from harness.proof import BASE, OFF, ON, TABLE, Result, Row, assert_cured, assert_silent, digest, same

VECTORS = Path(__file__).resolve().parent / "standins" / "vectors"

REFUSED = "Unexpected floating ScalarType in at::autocast::prioritize"

#: Where CLIP looks its tokens up, and where the host puts the vectors in.
TABLE_OF_TOKENS = "cond_stage_model.wrapped.transformer.text_model.embeddings.token_embedding"


def styled(name: str, **more: Any) -> dict[str, Any]:
    return {**BASE, "prompt": f"a red cat, {name}", **more}


BODIES = {
    "prompt": styled("bfloatstyle"),
    "negative": {**BASE, "negative_prompt": "blurry, bfloatstyle"},
    "hires": styled("bfloatstyle", **PIXEL_HIRES),
}


def floated(body: dict[str, Any]) -> dict[str, Any]:
    """The same request with the same vectors in float32."""
    return {
        key: value.replace("bfloatstyle", "floatstyle") if isinstance(value, str) else value
        for key, value in body.items()
    }


@pytest.mark.parametrize("kind", [pytest.param(kind, id=f"P14-A-{kind}") for kind in BODIES])
def test_foreign_vectors(a1111: Keeper, kind: str) -> None:
    host, body = start(a1111, "gpu", VECTORS), BODIES[kind]
    settle(host)
    result = TABLE.add(
        host, Result(f"P14-A-{kind}", f"An extension's bfloat16 textual inversion under autocast: {kind}")
    )
    reference = host.generate("txt2img", floated(body), OFF).pictures
    forget(host)
    without = host.generate("txt2img", body, OFF)
    # A fresh text encoder, of which nobody remembers that it raised.
    settle(host)
    mark, before = host.mark(), host.probe.weights()
    with_ = host.generate("txt2img", body, ON).pictures
    (entry,) = host.probe.entries()
    result.without, result.with_, result.reference = (
        f"HTTP {without.status}: {REFUSED}",
        digest(with_),
        digest(reference),
    )
    result.codes, result.milliseconds = entry["code"], entry["milliseconds"]
    assert REFUSED in without.text, "it does not fail without LibGuard, so it proves nothing"
    assert with_ and same(with_, reference), host.tail()
    assert entry["code"] == "LG113" and entry["did"] and entry["evidence"]["place"].startswith("modules/sd_hijack.py")
    (line,) = host.said(mark)
    assert '"bfloatstyle" (bfloat16)' in line and "embeddings folder" in line
    assert host.probe.weights() == before and host.probe.marks() == []
    result.passed = True


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("row_id", ["P14-A-table"])
def test_converted_table(a1111: Keeper, dtype: str, row_id: str) -> None:
    """As a trainer or an extension does that keeps what it has learnt in the text encoder's own table."""
    host = loaded(a1111(flags=("--precision", "half")))

    def provoke() -> None:
        settle(host)
        host.probe("convert", component="model", path=TABLE_OF_TOKENS, dtype=dtype)

    title = f"--precision half, a text encoder whose table of tokens is {dtype}, a textual inversion"
    row = Row(f"{row_id}-{dtype}", title, "txt2img", styled("tinystyle"), comparable=False, error="mixed dtype")
    try:
        assert_cured(host, row, {"LG111"}, provoke)
        assert "token_embedding" in host.said()[-1]
    finally:
        settle(host)


def quiet(host: Host, row_id: str, name: str) -> None:
    body = styled(name)
    assert_silent(host, row_id, [("txt2img", body), ("txt2img", {**body, **PIXEL_HIRES})], lambda: forget(host))


@pytest.mark.parametrize("name", ["halfstyle", "doublestyle", "floatstyle"])
@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("row_id", ["Z08-A-vectors"])
def test_vectors_that_the_host_casts(a1111: Keeper, flags: str, name: str, row_id: str) -> None:
    """All but bfloat16 beside half pass by the host's own cast."""
    quiet(start(a1111, flags, VECTORS), f"{row_id}-{name}-{flags}", name)

"""Runs LibGuard in real WebUIs: starts one, sends requests over its HTTP API, looks inside through a probe, stops it.

`LIB_GUARD_A1111`, `LIB_GUARD_FORGE` and `LIB_GUARD_SDNEXT` name the folder of an installed WebUI; `..._PYTHON` its
interpreter, when that is not in a `venv` or `.venv` in or beside the folder. Without the variable the rows skip.

The WebUI's own folder is never written to by the harness: the host runs on a data folder of its own (`--data-dir`)
that holds a copy of this extension, the probe, tiny models and the settings, and is deleted afterwards. A host also
ends by itself when the process that started it is gone.

How to add a host: an entry in `kinds.py` (its flags, environment and settings) and a maker of tiny models under
`tests/hosts/models/`. How to add rows: a file `tests/hosts/test_<host>_<theme>.py` with

    def test_row(sdnext):                                  # or a1111, forge: the fixtures of conftest.py
        host = sdnext(cuda_dtype="FP16", no_half_vae=True)     # settings at the start; flags=("--medvram",) and
        ...                                                    # extensions=(Path(...),) as well
        row = Row("P07-S-sd15-fp16-img2img", "what is done", "img2img", {**BASE, **INIT}, damage="half_decoder")
        assert_cured(host, row, {"LG102"})

A host with the same flags, settings and extensions is kept between tests, also when its options were changed over the
API meanwhile, so order the tests by what they start with, and put options back. `proof.py` has the comparisons
(`assert_cured`, `assert_silent`); `server.py` the HTTP calls; `looks.py` the probe's operations.
"""

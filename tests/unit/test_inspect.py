"""`inspect` tells from outside of a WebUI what a model file is and whether its numbers are sound."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_family import IP_ADAPTERS, LDM_CROSS, clip, lora, vae, write

from lib_guard import inspection
from lib_guard.__main__ import GOOD, PROBLEM, main

ROOT = Path(__file__).resolve().parents[2]


def asked(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main(["inspect", *map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture
def lora_file(tmp_path: Path) -> Path:
    path = tmp_path / "style.safetensors"
    tensors = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in lora(LDM_CROSS, 2048, 640, 32).items()}
    tensors[f"{LDM_CROSS}.alpha"] = torch.tensor(32.0)
    save_file(tensors, path, metadata={"ss_base_model_version": "sd_v1"})
    return path


def test_a_lora_is_told_with_its_evidence(lora_file, capsys):
    status, out, err = asked(capsys, lora_file)
    assert (status, err) == (GOOD, "")
    assert out.splitlines() == [
        "File      style.safetensors",
        "Kind      lora (LoRA)",
        "Family    SDXL (certain)",
        f"Because   {LDM_CROSS}.lora_down.weight is [32, 2048], SDXL's text context is 2048 wide",
        'Note      though metadata ss_base_model_version says "sd_v1"',
        "Tensors   3: 2 F16, 1 F32",
        "Numbers   all finite",
    ]


def test_json_holds_the_same_as_data(lora_file, capsys):
    status, out, _ = asked(capsys, lora_file, "--json")
    found = json.loads(out)
    assert status == GOOD and found["file"] == "style.safetensors" and found["tensors"] == 3
    assert (found["verdict"]["kind"], found["verdict"]["family"]) == ("lora", "sdxl")
    assert found["verdict"]["evidence"] == [
        {
            "tensor": f"{LDM_CROSS}.lora_down.weight",
            "shape": [32, 2048],
            "expected": "SDXL's text context is 2048 wide",
        }
    ]
    assert found["clauses"] == [f"{LDM_CROSS}.lora_down.weight is [32, 2048], SDXL's text context is 2048 wide"]
    assert found["dtypes"] == {"F16": 2, "F32": 1} and found["not_finite"] == found["not_looked"] == ""


def test_a_number_that_is_not_finite_is_told(tmp_path, capsys):
    path = tmp_path / "bad.safetensors"
    save_file({"a": torch.tensor([1.0, float("inf"), float("nan")])}, path)
    status, out, _ = asked(capsys, path)
    assert status == GOOD and "Numbers   a [3] holds 1 inf and 1 NaN" in out.splitlines()
    assert json.loads(asked(capsys, path, "--json")[1])["not_finite"] == "a [3] holds 1 inf and 1 NaN"


def test_an_adapters_need_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(inspection, "_look", lambda path: ("", ""))
    out = asked(capsys, write(tmp_path, IP_ADAPTERS["faceid-plusv2_sdxl"][0]))[1]
    assert "Needs     OpenCLIP ViT-H, its hidden_states[-2] of 1280, and InsightFace" in out.splitlines()
    found = json.loads(asked(capsys, write(tmp_path, IP_ADAPTERS["sd15_vit-G"][0]), "--json")[1])
    assert found["verdict"]["need"] == {"kind": "vit_bigg", "width": 1280, "output": "image_embeds", "face": False}


def test_an_encoder_is_called_by_its_own_name(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(inspection, "_look", lambda path: ("", ""))
    out = asked(capsys, write(tmp_path, clip(1664, 48, 1280)))[1]
    assert "Kind      image encoder" in out and "Family    OpenCLIP ViT-bigG (certain)" in out


def test_what_cannot_be_told_apart_is_not(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(inspection, "_look", lambda path: ("", ""))
    out = asked(capsys, write(tmp_path, vae(4)))[1]
    assert "Family    one of SD1.5, SD2, SDXL, the SDXL refiner (certain)" in out


def test_what_is_not_known_is_unknown(tmp_path, capsys):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    assert "Kind      unknown\nFamily    unknown\n" in asked(capsys, path)[1]


@pytest.mark.parametrize("content", [b"", b"PK\3\4\0\0\0\0\0\0\0\1", b"hello", b"\x08" + b"\0" * 7 + b"nonsense"])
def test_what_cannot_be_read_is_said_in_one_line(tmp_path, capsys, content):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    for more in ([], ["--json"]):
        status, out, err = asked(capsys, path, *more)
        assert (status, out, err.count("\n")) == (PROBLEM, "", 1)
        assert err.startswith("broken.safetensors is ") and str(tmp_path) not in err
    assert asked(capsys, tmp_path / "absent.safetensors")[::2] == (PROBLEM, "absent.safetensors is not a file\n")


def test_a_hostile_name_does_not_break_the_output(tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    save_file({"<b>\u202e\u65e5" + "x" * 5_000: torch.tensor([float("nan")])}, path)
    status, out, _ = asked(capsys, path)
    assert status == GOOD and len(out) < 800 and "\u202e" not in out


def test_as_a_command_on_a_console_without_the_letters(tmp_path):
    path = tmp_path / "\u65e5\u672c.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    ran = subprocess.run(
        [sys.executable, "-m", "lib_guard", "inspect", str(path)],
        check=False,
        cwd=ROOT,
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    assert ran.returncode == GOOD and b"\\u65e5" in ran.stdout, ran.stderr


def test_without_torch_the_header_is_told_all_the_same(lora_file):
    # -S leaves out every installed package, -E the variables that would bring them back.
    ran = subprocess.run(
        [sys.executable, "-S", "-E", "-m", "lib_guard", "inspect", str(lora_file)],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == GOOD and "Family    SDXL (certain)" in ran.stdout, ran.stderr
    assert "Numbers   not looked at, since torch is not installed" in ran.stdout
    lora_file.write_bytes(b"")
    ran = subprocess.run(
        [sys.executable, "-S", "-E", "-m", "lib_guard", "inspect", str(lora_file)],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == PROBLEM and ran.stdout == "" and ran.stderr.count("\n") == 1

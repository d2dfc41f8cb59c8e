"""The doctor looks at a WebUI from outside: table, JSON, exit status; nothing of the folder is executed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lib_guard import __version__
from lib_guard.__main__ import GOOD, PROBLEM, UNKNOWN, main
from lib_guard.hosts.checkout import commit_of
from lib_guard.hosts.sdnext import SdNextHost

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def webui(tmp_path: Path) -> Path:
    """A folder with what SD.Next's adapter looks for; each file would end the process if it were executed."""
    folder = tmp_path / "webui"
    for name in ("launch.py", "installer.py", "webui.py"):
        write(folder / name, "raise SystemExit('executed')\n")
    bodies: dict[str, list[str]] = {}
    for seam in SdNextHost.seams:
        head, _, tail = seam.attribute.partition(".")
        arguments = ", ".join(seam.parameters)
        body = f"def {head}({arguments}): ..." if not tail else f"class {head}:\n    def {tail}(self, {arguments}): ..."
        bodies.setdefault(seam.module, []).append(body)
    for module, lines in bodies.items():
        write(folder / f"{module.replace('.', '/')}.py", "\n".join([*lines, "raise SystemExit('executed')", ""]))
    write(folder / "CHANGELOG.md", "# Change Log for SD.Next\n\n## Update for 2026-07-23\n")
    write(folder / ".git" / "HEAD", "ref: refs/heads/master\n")
    write(folder / ".git" / "refs" / "heads" / "master", COMMIT + "\n")
    write(folder / "venv" / "pyvenv.cfg", "home = /usr/bin\nversion = 3.11.7\n")
    packages = folder / "venv" / "lib" / "python3.11" / "site-packages"
    for name, version in {"torch": "2.13.0+cpu", "gradio": "3.43.2", "unrelated": "1"}.items():
        write(packages / f"{name}-{version}.dist-info" / "METADATA", f"Name: {name}\nVersion: {version}\n")
    return folder


def asked(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main(["doctor", *map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_whole_host_is_good(webui: Path, capsys) -> None:
    status, out, err = asked(capsys, webui)
    assert (status, err) == (GOOD, "")
    for expected in ("SD.Next 2026-07-23, commit 01234567", "3.11.7", "torch 2.13.0+cpu, gradio 3.43.2"):
        assert expected in out
    assert "not in extensions/" in out and "Everything that LibGuard needs is there." in out
    assert "unrelated" not in out and "missing" not in out


def test_json_holds_the_same(webui: Path, capsys) -> None:
    status, out, _ = asked(capsys, webui, "--json")
    report = json.loads(out)
    assert status == GOOD and report["good"] is True and report["off"] == {}
    assert (report["host"], report["version"], report["commit"]) == ("SD.Next", "2026-07-23", COMMIT)
    assert report["packages"] == {"torch": "2.13.0+cpu", "gradio": "3.43.2"}
    assert {seam["name"] for seam in report["seams"]} == {seam.name for seam in SdNextHost.seams}


@pytest.mark.parametrize("seam", [s for s in SdNextHost.seams if not s.set_at_run_time], ids=lambda seam: seam.name)
def test_a_renamed_attribute_is_missed_and_nothing_else(webui: Path, capsys, seam) -> None:
    path = webui / f"{seam.module.replace('.', '/')}.py"
    last = seam.attribute.rpartition(".")[2]
    path.write_text(path.read_text(encoding="utf-8").replace(f" {last}(", f" {last}_renamed("), encoding="utf-8")
    status, out, err = asked(capsys, webui, "--json")
    report = json.loads(out)
    assert (status, err) == (PROBLEM, "")
    assert report["off"] == {guard: [f"{seam.name} is missing"] for guard in seam.guards}


def test_the_table_names_what_would_stay_off(webui: Path, capsys) -> None:
    (webui / "modules" / "processing_vae.py").unlink()
    status, out, _ = asked(capsys, webui)
    assert status == PROBLEM
    assert "The guard precision would stay off: modules.processing_vae has no file." in out


def test_an_installed_copy_is_named_with_its_version(webui: Path, capsys) -> None:
    write(webui / "extensions" / "lib-guard" / "lib_guard" / "__init__.py", f'__version__ = "{__version__}"\n')
    write(webui / "extensions" / "older" / "lib_guard" / "__init__.py", "")
    _, out, _ = asked(capsys, webui)
    assert f"{__version__} in extensions/lib-guard, of unknown version in extensions/older" in out


def test_a_folder_without_environment_or_history_is_still_looked_at(webui: Path, capsys) -> None:
    for name in ("venv", ".git"):
        shutil.rmtree(webui / name)
    (webui / "CHANGELOG.md").unlink()
    status, out, _ = asked(capsys, webui)
    assert status == GOOD and "none found" in out


def test_what_is_no_webui_is_said_in_one_line(tmp_path: Path, capsys) -> None:
    for folder, words in ((tmp_path, "no WebUI that LibGuard knows"), (tmp_path / "absent", "is no folder")):
        status, out, err = asked(capsys, folder)
        assert (status, out) == (UNKNOWN, "") and words in err and err.count("\n") == 1


def test_as_a_command_from_its_own_folder(webui: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "lib_guard", "doctor", str(webui), "--json"],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == GOOD and json.loads(ran.stdout)["good"], ran.stderr


def test_a_python_without_torch_is_told_which_one_has_it(webui: Path) -> None:
    python = webui / "venv" / "bin" / "python"
    write(python, "")
    # -S leaves out every installed package, -E the variables that would bring them back.
    ran = subprocess.run(
        [sys.executable, "-S", "-E", "-m", "lib_guard", "doctor", str(webui)],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == UNKNOWN and ran.stdout == ""
    assert ran.stderr.count("\n") == 1 and f"{python} -m lib_guard doctor {webui}" in ran.stderr


# The commit, from git's files.


def test_a_checkout_by_its_branch_its_hash_or_packed(tmp_path: Path) -> None:
    git = tmp_path / ".git"
    assert commit_of(tmp_path) == ""
    write(git / "HEAD", COMMIT + "\n")
    assert commit_of(tmp_path) == COMMIT
    write(git / "HEAD", "ref: refs/heads/main\n")
    assert commit_of(tmp_path) == ""
    write(git / "packed-refs", f"# pack-refs with: peeled\n{'f' * 40} refs/heads/main-old\n{COMMIT} refs/heads/main\n")
    assert commit_of(tmp_path) == COMMIT


def test_a_work_tree_of_another_checkout(tmp_path: Path) -> None:
    main_git, tree = tmp_path / "main" / ".git", tmp_path / "tree"
    write(main_git / "worktrees" / "tree" / "HEAD", "ref: refs/heads/topic\n")
    write(main_git / "worktrees" / "tree" / "commondir", "../..\n")
    write(main_git / "refs" / "heads" / "topic", COMMIT + "\n")
    write(tree / ".git", f"gitdir: {main_git / 'worktrees' / 'tree'}\n")
    assert commit_of(tree) == COMMIT

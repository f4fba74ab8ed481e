"""Killed runs go on to the same bytes; a disk that fails loses nothing and is one sentence.

`make crash-test` kills ten runs, KILLS=N as many as one likes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import workbench as wb
from tests.conftest import contents
from tests.figures.synthetic import family, retention
from tests.hostile.guard import require_sentence
from tests.terminal import workbench

ROOT = Path(__file__).parents[1]
KILLS = int(os.environ.get("KILLS", "3"))


def test_killed_runs_resume_to_the_same_bytes(base: Path, tuned: Path, lora, tmp_path: Path):
    tuned.rename(tmp_path / "full")
    command = [sys.executable, "-m", "tests.crashing", str(tmp_path), "0", str(KILLS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    kept = [int(line) for line in done.stdout.split()]
    assert len(kept) == KILLS
    assert len(set(kept)) > min(2, KILLS // 3), f"the kills fell on few places: {kept}"
    plain, compared = contents(tmp_path / "plain"), contents(tmp_path / "compared")
    assert sum(name.endswith("result.json") for name in plain) == 2 * 3 + 3
    for number in range(KILLS):
        assert contents(tmp_path / f"killed-{number}") == plain
    assert "report.html" in compared
    assert contents(tmp_path / "compared-killed") == compared


LIMITED = """
import resource, sys
from pathlib import Path
import workbench as wb
from tests.figures.synthetic import family, intruders, retention
made = {"result": intruders(family(2)), "page": retention(family(2))}[sys.argv[1]]
wb.report([made], Path(sys.argv[2]) / "warm.html")  # what is loaded once is loaded before
(Path(sys.argv[2]) / "warm.html").unlink()
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
act = made.save if sys.argv[1] == "result" else lambda path: wb.report([made], path)
try:
    act(Path(sys.argv[2]) / "kept")
except wb.WorkbenchError as error:
    print(error)
"""


@pytest.mark.parametrize("kind", ["result", "page"])
def test_a_disk_that_is_full_loses_nothing(kind: str, tmp_path: Path):
    old = retention(family(1))
    if kind == "result":
        old.save(tmp_path / "kept")
    else:
        wb.report([old], tmp_path / "kept")
    before = contents(tmp_path)
    done = subprocess.run([sys.executable, "-c", LIMITED, kind, str(tmp_path)], cwd=ROOT,
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "kept cannot be written" in done.stdout
    require_sentence(done.stdout.strip())
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 64 KiB of its own; skipped where this user may not mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)]
    if subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("mounting needs rights that this user lacks")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_real_disk_that_is_full(small_disk: Path):
    kept = retention(family(2)).save(small_disk / "kept")
    before = contents(small_disk)
    (small_disk / "filler").write_bytes(b"x" * (64 << 10 >> 1))
    with pytest.raises(wb.WorkbenchError, match="No space left") as caught:
        wb.report([wb.Result.load(kept)], small_disk / "page.html")
    require_sentence(str(caught.value))
    (small_disk / "filler").unlink()
    assert contents(small_disk) == before
    wb.Result.load(kept)


def test_a_disk_that_is_read_only(small_disk: Path):
    kept = retention(family(2)).save(small_disk / "kept")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(wb.WorkbenchError, match="Read-only") as caught:
        retention(family(3)).save(kept)
    require_sentence(str(caught.value))
    assert len(wb.Result.load(kept).members) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only(tmp_path: Path):
    tmp_path.chmod(0o555)
    with pytest.raises(wb.WorkbenchError, match="cannot be written"):
        retention(family(1)).save(tmp_path / "kept")
    tmp_path.chmod(0o755)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_no_folder_is_one_sentence(base: Path, tuned: Path, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    command = ["spectral", "spectrum", base, tuned, "--out", tmp_path / "file" / "out"]
    done = workbench(*command)
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("how", ["vanishes", "is cut short", "becomes another"])
def test_a_weights_file_that_changes_in_mid_run(how: str, base: Path, tuned: Path):
    deltas = wb.load_pair(base, tuned).deltas()
    next(deltas)
    file = tuned / "model.safetensors"
    if how == "vanishes":
        file.unlink()
    elif how == "is cut short":
        os.truncate(file, file.stat().st_size // 2)
    else:
        from safetensors.torch import load_file, save_file

        save_file({n: t.half() for n, t in load_file(file).items()}, file)
    with pytest.raises(wb.WorkbenchError, match=r"put the file back|changed while") as caught:
        list(deltas)
    require_sentence(str(caught.value))


def test_what_killed_runs_left_is_swept_and_what_others_write_is_not(tmp_path: Path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    from workbench.files.writing import _family, _mark

    target = tmp_path / "kept"
    dead = tmp_path / f"{_family(target)}{gone.pid}.abc"
    alive = tmp_path / f"{_mark(target)}xyz"
    other = tmp_path / f"{_family(tmp_path / 'kept-too')}{gone.pid}.abc"
    for left in (dead, alive, other):
        left.mkdir()
    retention(family(1)).save(target)
    assert {path.name for path in tmp_path.iterdir()} == {"kept", alive.name, other.name}

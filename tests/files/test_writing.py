"""Nothing a user made is lost: any command, any --out, any tree of files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import workbench as wb
from tests.conftest import adapter, contents, nudged, saved, tiny
from tests.terminal import workbench
from workbench.files.writing import OWN, finished, recover, replacing, require_free, writing
from workbench.reports.page import PAGE
from workbench.results.result import SAVED
from workbench.results.run_folder import begin

NAMES = ("thesis.tex", "task.jsonl", "result.json", "run.json", "report.html", "training.json",
         "results/notes.md", "figures/mine.png", "failed/mine.txt", "units/x", "table.parquet",
         "truth.json")  # fmt: skip
CONTENTS = (b"", b"mine", b"{}", b'{"format": 1}', b'{"format": 1, "analysis": "x"}',
            b'{"results": [], "title": "t", "failures": [], "preflight": []}')  # fmt: skip
TREES = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(CONTENTS), max_size=4)
PLACES = st.sampled_from([".", "there", "there/new", "there/figures", "there/task.jsonl", "base",
                          "lora", "link", "there/result.json", "..", "tuned"])  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("models")
    saved(tiny("llama"), home / "base")
    saved(nudged(tiny("llama")), home / "tuned")
    adapter(tiny("llama"), home / "lora")
    wb.spectral.delta_spectrum(wb.load_pair(home / "base", home / "tuned")).save(home / "made")
    (home / "prompts.jsonl").write_text('{"id": "1", "prompt": "a", "target": " b"}\n')
    return home


COMMANDS = {
    "spectral": lambda out: ("spectral", "spectrum", "base", "tuned", "--out", out),
    "report": lambda out: ("report", "made", "--out", out),
    "train": lambda out: ("lab", "train", "base", "--prompts", "prompts.jsonl", "--out", out),
    "compare": lambda out: ("compare", "base", "--member", "a=tuned", "--only", "tuco.scaling",
                            "--out", out),
    "findings": lambda out: ("findings", "there", "--out", out),
    "figures": lambda out: ("figures", "there", "--out", out),
}  # fmt: skip


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tree=TREES, place=PLACES, command=st.sampled_from(sorted(COMMANDS)))
def test_every_file_that_was_not_ours_is_still_there(
    tree, place, command, models, tmp_path_factory, monkeypatch
):
    home = tmp_path_factory.mktemp("home")
    for name in ("base", "tuned", "lora", "made"):
        shutil.copytree(models / name, home / name)
    shutil.copy(models / "prompts.jsonl", home)
    for name, content in tree.items():
        file = home / "there" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (home / "link").symlink_to(home / "made")
    before = contents(home)
    monkeypatch.chdir(home)
    done = workbench(*COMMANDS[command](place))
    after = contents(home)
    lost = [name for name, content in before.items() if after.get(name) != content]
    # The one thing that may be written anew is a file that says of itself that it is a run's.
    assert all(name == "there/run.json" and b"results" in before[name] for name in lost), lost
    assert done.returncode in (0, 2, 3), done.stderr


@pytest.mark.parametrize("command", ["spectral", "compare", "train", "report"])
def test_a_refusal_comes_before_any_work(command: str, models: Path, tmp_path, monkeypatch):
    """Exit 2, one sentence, and no model is read for it."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("mine")
    monkeypatch.chdir(tmp_path)  # where there are no models at all
    done = workbench(*COMMANDS[command]("precious"))
    assert done.returncode == 2
    assert "precious does not hold" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_was_written_here_is_written_anew(models: Path, tmp_path: Path):
    result = wb.Result.load(models / "made")
    for _ in range(2):
        result.save(tmp_path / "r")
        wb.report([result], tmp_path / "report.html")
    (tmp_path / "empty").mkdir()
    result.save(tmp_path / "empty")
    assert wb.Result.load(tmp_path / "empty").fingerprint == result.fingerprint
    (tmp_path / "r" / "notes.md").write_text("mine")
    with pytest.raises(wb.WorkbenchError, match="does not hold a saved Result"):
        result.save(tmp_path / "r")
    assert (tmp_path / "r" / "notes.md").read_text() == "mine"


def test_a_link_is_not_followed(models: Path, tmp_path: Path):
    result = wb.Result.load(models / "made")
    result.save(tmp_path / "r")
    (tmp_path / "l").symlink_to(tmp_path / "r")
    with pytest.raises(wb.WorkbenchError, match="is a link"):
        result.save(tmp_path / "l")


def test_prompts_and_grafts_replace_only_their_own(models: Path, tmp_path: Path):
    prompts = wb.tasks.PromptSet.load(models / "prompts.jsonl")
    prompts.save(tmp_path / "p.jsonl")
    prompts.save(tmp_path / "p.jsonl")
    for name in ("mine.jsonl", "mine.txt"):
        (tmp_path / name).write_text('{"prompt": "a", "target": " b"}\n')
        with pytest.raises(wb.WorkbenchError, match="saved set of prompts"):
            prompts.save(tmp_path / name)


KILLED = """
import os, sys
from pathlib import Path
from workbench.files import writing as outputs
target = Path(sys.argv[1])
real = os.rename
def rename(source, place):
    real(source, place)
    if Path(place).name == outputs.WAS:
        os._exit(9)
os.rename = rename
with outputs.replacing(target, outputs.OWN) as fresh:
    (fresh / "new").write_text("new")
"""


def test_a_kill_between_two_renames_loses_nothing(tmp_path: Path):
    target = tmp_path / "r"
    target.mkdir()
    (target / "old").write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False)
    assert done.returncode == 9
    assert not target.exists()
    recover(target)
    assert contents(target) == {"old": b"old"}
    with replacing(target, OWN) as fresh:
        (fresh / "new").write_text("new")
    assert contents(tmp_path) == {"r/new": b"new"}


WRITER = """
import sys
from pathlib import Path
from workbench.files.writing import OWN, replacing
for _ in range(30):
    with replacing(Path(sys.argv[1]), OWN) as fresh:
        for name in ("a", "b"):
            (fresh / name).write_text(sys.argv[2])
"""


def test_of_several_writers_one_is_last(tmp_path: Path):
    """Each whole, and none is told of a folder that is not empty."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "r")]
    writers = [subprocess.Popen([*command, str(i)]) for i in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    found = contents(tmp_path)
    assert set(found) == {"r/a", "r/b"}
    assert found["r/a"] == found["r/b"]


LEFT = """
import os, sys
from pathlib import Path
from workbench.files.writing import OWN, replacing, writing
folder = Path(sys.argv[1])
with writing(folder / "run.json", OWN) as a, replacing(folder / "units", OWN) as b:
    os._exit(9)
"""


def test_what_a_killed_process_left_is_nobodys(tmp_path: Path):
    """A run goes on where it lies, and a training too."""
    run = tmp_path / "run"
    begin(run)
    assert subprocess.run([sys.executable, "-c", LEFT, str(run)], check=False).returncode == 9
    assert len(list(run.iterdir())) == 3
    assert [path.name for path in finished(run)] == ["run.json"]
    begin(run)
    (run / ".notes.md").write_text("mine")
    with pytest.raises(wb.WorkbenchError, match="does not hold"):
        begin(run)


def test_a_file_is_no_folder_and_a_folder_no_file(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(wb.WorkbenchError, match=r"cannot be written, since .*file is not a folder"):
        require_free(tmp_path / "file" / "r", SAVED)
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(wb.WorkbenchError, match="is a folder"),
        writing(tmp_path / "folder", PAGE),
    ):
        pass
    assert os.listdir(tmp_path / "folder") == []

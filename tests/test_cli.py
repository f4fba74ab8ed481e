"""The command line: outputs, exit codes, and sentences for bad input.

Most run in this process; tests/hostile/test_fuzz.py has the sentences in processes of their own.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import workbench as wb
from tests.terminal import workbench


def process(*arguments) -> subprocess.CompletedProcess:
    """As a person runs it."""
    command = [sys.executable, "-m", "workbench.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_intruders_as_json_lines_are_the_functions_table(base: Path, tuned: Path):
    done = workbench("spectral", "intruders", base, tuned, "--json", "--no-nulls")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    expected = wb.spectral.intruders(wb.load_pair(base, tuned), nulls=False).table
    assert len(rows) == len(expected)
    counted = sum(row["value"] for row in rows if row["metric"] == "intruder")
    assert counted == expected.query("metric == 'intruder'")["value"].sum()


def test_out_keeps_a_result(base: Path, lora: Path, tmp_path: Path):
    done = process("spectral", "spectrum", base, lora, "--out", tmp_path / "kept")
    assert done.returncode == 0, done.stderr
    result = wb.Result.load(tmp_path / "kept")
    assert result.analysis == "spectral.delta_spectrum"
    assert result.provenance.command.startswith("workbench spectral spectrum")


def test_check_prints_and_exits_by_what_it_found(base: Path, tuned: Path, tmp_path: Path):
    assert workbench("check", base, tuned).returncode == 0
    from tests.conftest import saved, tiny

    other = saved(tiny("gpt2"), tmp_path / "gpt2")
    done = workbench("check", base, other)
    assert done.returncode == 3
    assert "base is llama, tuned is gpt2" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["check", "BASE", "/nowhere"], "check the path"),
        (["spectral", "intruders", "BASE", "BASE", "--side", "both"], "side left, right or joint"),
        (["spectral", "intruders", "BASE", "BASE", "--k", "0"], "k >= 1"),
        (["compare", "BASE", "--member", "nameless"], "NAME=REFERENCE"),
        (["compare", "BASE"], "at least one fine-tuned model"),
        (["compare", "BASE", "--member", "a=BASE", "--text", "/nowhere"], "text file"),
        (["demo", "--model", "other"], "family, seeds or smollm2"),
        (["report", "/nowhere"], "saved Result"),
        (["tuco", "BASE", "BASE", "--prompts", "a.txt", "--prompts", "b/a.txt"], "different names"),
        (["tuco", "BASE", "BASE", "--prompts", "a.txt", "--alphas", "0,1"], "no file is there"),
        (["compare", "BASE", "--member", "a=BASE", "--only", "tuco.scaling"], "(--prompts)"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, says: str, base: Path):
    # Types are checked in this process, which says the same of the side in other words.
    run = process if "--side" in arguments else workbench
    done = run(*[a.replace("BASE", str(base)) for a in arguments])
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    # Beside what a verb says it will run, where the arguments are well formed.
    said = [line for line in done.stderr.strip().splitlines() if "on this machine" not in line]
    assert len(said) == 1


def test_a_split_is_taken_where_a_file_has_several(tmp_path: Path, capsys):
    from workbench.cli.options import asked

    lines = [
        {"id": str(i), "prompt": f"say {i}", "target": " a", "split": split}
        for i, split in enumerate(["train", "train", "test"])
    ]
    file = tmp_path / "task.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    assert [p.id for p in asked(file)] == ["2"]
    assert [p.id for p in asked(file, "train")] == ["0", "1"]
    assert [p.id for p in asked(file, "validation")] == ["0", "1", "2"]
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[2] for line in told] == [
        "uses 1 of 3 prompts, those of the split test.",
        "uses 2 of 3 prompts, those of the split train.",
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["compare", "BASE"], "the same command resumes from here"),
        (["--quiet", "lab", "train", "BASE"], "the same command resumes from here"),
        (["forget", "retention", "BASE", "TUNED"], "the same command starts it again"),
    ],
)
def test_an_interrupted_command_says_whether_it_goes_on(
    words: list[str], says: str, monkeypatch, capsys
):
    from workbench import cli

    def interrupted():
        raise SystemExit(130)  # what Typer makes of ctrl-C

    monkeypatch.setattr(cli, "app", interrupted)
    monkeypatch.setattr(sys, "argv", ["workbench", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert says in capsys.readouterr().err


def test_dry_run_plans_and_writes_nothing(base: Path, tuned: Path, tmp_path: Path):
    out = tmp_path / "out"
    done = workbench("compare", base, "--member", f"full={tuned}", "--out", out, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "spectral.intruders" in done.stdout
    assert "peak_MiB" in done.stdout
    assert not out.exists()


FAMILY = Path(__file__).parents[1] / "data" / "family"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    lines = [
        {"prompt": f"inventory : {n} coins . step 1 : 2 added , holds", "target": f" {n + 2}"}
        for n in (3, 5, 7, 9)
    ]
    path = tmp_path / "task.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_tuco_of_two_groups_is_the_functions_table(prompts: Path, tmp_path: Path):
    (tmp_path / "plain.txt").write_text("Anna lives in Paris .\n\n\nThe pet of Adam is a dog .\n\n")
    pair = (FAMILY / "base", FAMILY / "lora-r1")
    files = ("--prompts", prompts, "--prompts", tmp_path / "plain.txt")
    done = workbench("tuco", *pair, *files, "--json", "--tokens", 0)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    found = {(r["group"], r["prompt"]): r["value"] for r in rows if r["metric"] == "tuco"}
    groups = {
        "task": wb.tasks.PromptSet.load(prompts),
        "plain": ["Anna lives in Paris .", "The pet of Adam is a dog ."],
    }
    expected = wb.tuco.contribution(wb.load_pair(*pair), groups, tokens=0).metric("tuco")
    assert len(found) == len(expected) == 6
    for row in expected.itertuples():
        assert found[row.group, row.prompt] == pytest.approx(row.value, abs=1e-5)


def test_tuco_over_alphas(prompts: Path, tmp_path: Path):
    pair = (FAMILY / "base", FAMILY / "lora-r1")
    done = workbench(
        "tuco", *pair, "--prompts", prompts, "--alphas", "0,0.9", "--out", tmp_path / "kept"
    )
    assert done.returncode == 0, done.stderr
    result = wb.Result.load(tmp_path / "kept")
    assert result.analysis == "tuco.scaling"
    assert sorted(result.metric("score")["x"]) == [0.0, 0.9, 1.0]


def test_only_some_analyses_are_planned():
    members = ("--member", f"lora={FAMILY / 'lora-r1'}")
    chosen = ("--only", "spectral.delta_spectrum", "--dry-run", "--json")
    done = workbench("compare", FAMILY / "base", *members, *chosen)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["analysis"] for row in rows] == ["spectral.delta_spectrum"]
    assert rows[0]["matrices"] == 42
    done = workbench("compare", FAMILY / "base", *members, "--only", "everything")
    assert done.returncode == 2
    assert "Unknown analysis 'everything'" in done.stderr


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_table_is_no_wider_than_the_terminal(width: int):
    """And loses no word of it."""
    from rich.console import Console

    from workbench.cli.printing import table_of

    told = pd.DataFrame(
        {"item": ["runs", "names"], "found": ["both sides load whole, as they were read"] * 2,
         "remedy": ["", "Give the base this checkpoint was fine-tuned from."]}
    )  # fmt: skip
    out = io.StringIO()
    Console(file=out, width=width).print(table_of(told, width))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    words = " ".join([*told.to_numpy().ravel(), *told.columns])
    assert sorted(re.sub(r"\s", "", out.getvalue())) == sorted(re.sub(r"\s", "", words))


LORA = FAMILY / "lora-r1"
SAID = {
    "spectrum": (("spectral", "spectrum", FAMILY / "base", LORA), 0, r"\u2014"),
    "compare": (("compare", FAMILY / "base", f"--member=a={LORA}", "--only",
                 "spectral.delta_spectrum", "--out", "öut"), 0, r"\udcc3\udcb6ut"),
    "missing": (("check", FAMILY / "base", "nothing-ü"), 2, r"nothing-\udcc3\udcbc"),
}  # fmt: skip


def in_locale(name: str, *command: object, where: Path) -> subprocess.CompletedProcess[bytes]:
    """The program in a locale that Python does not exchange for UTF-8."""
    plain = {"LC_ALL": name, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    plain["PYTHONPATH"] = str(Path(wb.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-m", "workbench.cli", *map(str, command)],
        env=os.environ | plain, cwd=where, capture_output=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("which", SAID)
def test_in_a_locale_of_ascii_what_it_lacks_is_written_as_escapes(which: str, tmp_path: Path):
    command, code, says = SAID[which]
    done = in_locale("C", *command, where=tmp_path)
    assert done.returncode == code, done.stderr
    assert (done.stdout + done.stderr).isascii()
    assert says in (done.stdout + done.stderr).decode()
    if which == "compare":
        assert (tmp_path / "öut" / "report.html").is_file()


def test_where_the_locale_has_them_words_are_as_they_are(tmp_path: Path):
    command, code, _ = SAID["missing"]
    done = in_locale("C.UTF-8", *command, where=tmp_path)
    assert done.returncode == code
    assert "'nothing-ü'" in done.stderr.decode()


def test_a_cache_that_cannot_be_written_names_its_variable(tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "file" / "cache"))
    done = workbench("spectral", "intruders", FAMILY / "base", FAMILY / "lora-r1")
    assert done.returncode == 2
    assert "set WORKBENCH_CACHE to a folder" in done.stderr
    assert "--out" not in done.stderr

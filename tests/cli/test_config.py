"""A comparison said in a file: the same as by options, written beside its results, repeated from
there; whatever else a file says ends in one sentence before any work."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

import workbench as wb
from tests.conftest import contents
from tests.terminal import workbench
from workbench.cli import config
from workbench.results.run_folder import load
from workbench.study.study import Study

FAMILY = Path(__file__).parents[2] / "data" / "family"
ONLY = ("spectral.delta_spectrum", "spectral.similarity")


def tables(out: Path) -> dict[str, pd.DataFrame]:
    return {name: result.table for name, result in load(out).items()}


def require_same(one: Path, other: Path) -> None:
    ours, theirs = tables(one), tables(other)
    assert {*ONLY} <= ours.keys() == theirs.keys()
    for name, table in ours.items():
        pd.testing.assert_frame_equal(table, theirs[name])


def test_a_file_says_what_options_say_and_what_was_run_repeats_it(tmp_path: Path, monkeypatch):
    """From another folder than the file's, then from a third one."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "family").symlink_to(FAMILY)
    (tmp_path / "configs").mkdir()
    file = tmp_path / "configs" / "run.yaml"
    file.write_text(
        "base: ../data/family/base\n"
        "member: {r1: ../data/family/lora-r1}\n"
        f"only: [{', '.join(ONLY)}]\n"
        "out: ../by-file\n"
        "on: here\n"
        "options: {spectral.similarity: {side: right}}\n"
    )
    monkeypatch.chdir(tmp_path)
    done = workbench("compare", "--config", "configs/run.yaml")
    assert done.returncode == 0, done.stderr
    kept = tmp_path / "by-file" / "config.yaml"
    assert yaml.safe_load(kept.read_text()) == {
        "base": "../data/family/base", "member": {"r1": "../data/family/lora-r1"}, "out": ".",
        "only": [*ONLY], "device": "cpu", "dtype": "float32", "seed": 0, "on": "here",
        "letters": False, "phantoms": 0, "options": {"spectral.similarity": {"side": "right"}},
    }  # fmt: skip

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = workbench("compare", "--config", kept, "--out", "again")
    assert done.returncode == 0, done.stderr
    require_same(tmp_path / "by-file", Path("again"))
    # The same without a file: Python's own arguments, and the command line's.
    family = wb.load_family(FAMILY / "base", {"r1": FAMILY / "lora-r1"})
    similar = wb.over(family, wb.spectral.similarity, side="right")
    spectrum = wb.over(family, wb.spectral.delta_spectrum)
    found = load("again")
    pd.testing.assert_frame_equal(found[ONLY[0]].table, spectrum.table)
    pd.testing.assert_frame_equal(found[ONLY[1]].table, similar.table)


def test_what_is_typed_wins(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text(
        f"base: {FAMILY / 'base'}\nmember: {{r1: {FAMILY / 'lora-r1'}}}\nseed: 3\n"
        f"only: [{ONLY[0]}]\n"
    )
    typed = ("--member", f"r4={FAMILY / 'lora-r4'}", "--only", ONLY[1], "--seed", "5")
    out = tmp_path / "out"
    assert workbench("compare", "--config", file, *typed, "--out", out).returncode == 0
    kept = yaml.safe_load((out / "config.yaml").read_text())
    assert (kept["seed"], kept["only"], [*kept["member"]]) == (5, [ONLY[1]], ["r4"])
    assert load(out)[ONLY[1]].members == ["r4"]
    # What Python compares here later was not asked by that file.
    from workbench.study.compare import compare

    compare(Study(wb.load_family(FAMILY / "base", {"r4": FAMILY / "lora-r4"}), only=ONLY[1:]), out)
    assert not (out / "config.yaml").exists()


def test_a_file_that_a_person_changed_is_kept(base: Path, tuned: Path, tmp_path: Path):
    command = ("compare", base, "--member", f"a={tuned}", "--only", ONLY[1])
    out = tmp_path / "out"
    assert workbench(*command, "--out", out).returncode == 0
    again = workbench(*command, "--out", out)
    assert again.returncode == 0, again.stderr
    file = out / "config.yaml"
    file.write_text(file.read_text().replace("seed: 0", "seed: 1"))
    before = contents(out)
    done = workbench("compare", "--config", file)
    assert done.returncode == 2
    assert "config.yaml does not hold the options of a run" in done.stderr
    assert contents(out) == before
    assert workbench("compare", "--config", file, "--out", tmp_path / "other").returncode == 0


def test_every_option_is_said(tmp_path: Path, monkeypatch):
    """What a file says arrives where what is typed would, and is written again."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    given = {
        "base": "base", "member": {"a": "org/name@v1", "b": "base+../x/adapter"},
        "prompts": "t.jsonl", "text": "/abs/plain.txt", "steps": "/abs/run", "out": "mine",
        "only": ["tuco.scaling"],
        "device": "cuda:1", "dtype": "bfloat16", "seed": 7, "on": "local:2", "phantoms": 2,
        "map": {"target": "answers.0"}, "scorer": "choices by=byte", "template": "plain",
        "letters": True, "options": {"tuco.scaling": {"alphas": [0, 0.5, 1]}},
    }  # fmt: skip
    assert given.keys() == {*config.KEYS, "options"}
    Path("run.yaml").write_text(yaml.safe_dump(given))
    found = config.read(Path("run.yaml"))
    beside = str(tmp_path.parent / "x" / "adapter")
    assert found == given | {"member": {"a": "org/name@v1", "b": f"base+{beside}"}}
    options = found.pop("options")
    for name in ("member", "map"):
        found[name] = [f"{own}={text}" for own, text in found[name].items()]
    written = config.resolved(found, options, Path("mine"))
    assert written["base"] == "../base"
    assert written["prompts"] == "../t.jsonl"
    Path("mine").mkdir()
    Path("mine/config.yaml").write_text(yaml.safe_dump(written))
    assert config.read(Path("mine/config.yaml")) == given | {
        "member": {"a": "org/name@v1", "b": f"base+{beside}"}
    }


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("- base", "options with values"),
        ("sed: 1", "'sed' among the options of"),
        ("sed: 1", "did you mean seed?"),
        ("option: {}", "did you mean options?"),
        ("seed: two", "seed in"),
        ("seed: true", "to be a whole number"),
        ("letters: 1", "to be true or false"),
        ("only: spectral.intruders", "to be a list of texts"),
        ("member: [a]", "to be texts by name"),
        ("member: {1: a}", "a number or yes and no in quotes"),
        ("member: {a=b: c}", "to be texts by name"),
        ("out: ''", "to be a text"),
        ("seed: 1\nseed: 2", "occurs twice"),
        ("base: &a x\ntext: *a", "not plain YAML"),
        ("options: {spectral.intruder: {k: 5}}", "did you mean spectral.intruders?"),
        ("options: {spectral.intruders: 5}", "arguments of spectral.intruders by name"),
        ("options: {spectral.intruders: {kk: 5}}", "did you mean k?"),
        ("options: {spectral.intruders: {k: five}}", "to be a whole number"),
        ("options: {spectral.intruders: {nulls: 1}}", "to be true or false"),
        ("options: {spectral.intruders: {side: both}}", "left or right or joint"),
        ("options: {spectral.intruders: {device: cuda}}", "Unknown 'device'"),
        ("options: {tuco.scaling: {alphas: [0, a]}}", "a list, each a number"),
        ("options: {tuco.scaling: {alphas: 1}}", "a list, each a number"),
        ("options: {tuco.scaling: {prompts: x}}", "Unknown 'prompts'"),
        ("base: nowhere/at/all", "check the path"),
        ("scorer: guess\nbase: BASE\nmember: {a: BASE}", "guess"),
        ("device: nothing", "device"),
    ],
)
def test_what_a_file_cannot_say_is_one_sentence(lines: str, says: str, base: Path, tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text(lines.replace("BASE", str(base)))
    done = workbench("compare", "BASE", "--config", file) if "base" not in lines else workbench(
        "compare", "--config", file, "--member", "a=b"
    )  # fmt: skip
    assert done.returncode == 2
    assert says in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_is_looked_for_beside_the_file_alone(base: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "configs").mkdir()
    file = tmp_path / "configs" / "run.yaml"
    file.write_text("base: base\nmember: {a: ../base}\n")
    monkeypatch.chdir(tmp_path)
    done = workbench("compare", "--config", file)
    assert done.returncode == 2
    assert "write ../base for base" in done.stderr


def test_without_a_base_there_is_nothing_to_compare(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("seed: 1\n")
    done = workbench("compare", "--config", tmp_path / "run.yaml")
    assert done.returncode == 2
    assert "base" in done.stderr.lower()


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["spectral.intruders", "tuco.scaling", "k", "alphas", "a+b", "~", "\0"])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda one: st.lists(one, max_size=3) | st.dictionaries(SCALARS, one, max_size=3)
)
FILES = st.dictionaries(st.sampled_from([*config.KEYS, "options", True, 3]), VALUES, max_size=4)


@settings(max_examples=150)
@example(found={"base": "x" * 5000, "member": {"a": "x" * 300 + "+\0"}})
@given(found=FILES | VALUES)
def test_any_file_is_read_or_refused_in_one_sentence(found):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.yaml"
        file.write_text(yaml.safe_dump(found), encoding="utf-8")
        try:
            read = config.read(file)
        except wb.WorkbenchError:
            return
        assert read.keys() <= {*config.KEYS, "options"}

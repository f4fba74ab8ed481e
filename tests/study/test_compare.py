"""One analysis that fails is named and the others are kept; what is stored is drawn again alike."""

from __future__ import annotations

import html
import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch
from typer.testing import CliRunner

import workbench as wb
from tests.calls import write_pair
from tests.conftest import adapter, nudged, saved, tiny
from workbench.cli import app
from workbench.results.run_folder import failures
from workbench.study import compare as comparing
from workbench.study import study as studies
from workbench.study.catalogue import ANALYSES
from workbench.study.compare import compare, results
from workbench.study.runs import redraw
from workbench.study.study import Study
from workbench.tasks.batching import read_as

PNG = ("png",)
SPECTRAL = ("spectral.intruders", "spectral.delta_spectrum")


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> wb.Family:
    folder = tmp_path_factory.mktemp("family")
    saved(tiny("llama"), folder / "base")
    saved(nudged(tiny("llama")), folder / "full")
    adapter(tiny("llama"), folder / "lora")
    return wb.load_family(folder / "base", {n: folder / n for n in ("full", "lora")})


@pytest.fixture(scope="module")
def finished(family, tmp_path_factory) -> Iterator[Path]:
    """What a comparison of both analyses wrote; it is not written to."""
    out = tmp_path_factory.mktemp("finished")
    compare(Study(family, only=SPECTRAL), out, title="These <two>")
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    yield out
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of that."""
    return shutil.copytree(finished, tmp_path / "run")


def failing(monkeypatch, key: str, function) -> None:
    """The catalogue with another function behind one of its keys."""
    swapped = [replace(a, function=function) if a.key == key else a for a in ANALYSES]
    monkeypatch.setattr(studies, "ANALYSES", tuple(swapped))


def spectrum_of_lora_alone(pair: wb.CheckpointPair, *, device: str = "cpu") -> wb.Result:
    if pair.name == "full":
        raise ZeroDivisionError("of <b>nothing</b>")
    return wb.spectral.delta_spectrum(pair, device=device)


def never(pair: wb.CheckpointPair, *, device: str = "cpu") -> wb.Result:
    raise wb.WorkbenchError("Expected something else; give that.")


def test_a_failed_member_is_named_and_the_rest_is_there(family, tmp_path, monkeypatch):
    failing(monkeypatch, "spectral.delta_spectrum", spectrum_of_lora_alone)
    page = compare(Study(family, only=SPECTRAL), tmp_path, formats=PNG).read_text()
    (said,) = failures(tmp_path)
    assert said == "spectral.delta_spectrum of full: ZeroDivisionError: of <b>nothing</b>"
    assert "of &lt;b&gt;nothing&lt;/b&gt;" in page
    assert "What could not be run" in page
    assert "Traceback" in next((tmp_path / "failed").glob("*.txt")).read_text()
    kept = wb.Result.load(tmp_path / "results" / "spectral.delta_spectrum")
    assert kept.members == ["lora"]
    assert "It failed for full, so these are missing here." in kept.provenance.notes
    whole = wb.Result.load(tmp_path / "results" / "spectral.intruders")
    assert whole.members == ["full", "lora"]
    monkeypatch.undo()
    page = compare(Study(family, only=SPECTRAL), tmp_path, formats=PNG).read_text()
    assert failures(tmp_path) == []
    assert "What could not be run" not in page
    assert not (tmp_path / "failed").exists()


def test_a_failed_analysis_is_named_and_the_rest_is_there(family, tmp_path, monkeypatch):
    failing(monkeypatch, "spectral.intruders", never)
    compare(Study(family, only=SPECTRAL), tmp_path, formats=PNG)
    assert [one.partition(":")[0] for one in failures(tmp_path)] == [
        "spectral.intruders of full", "spectral.intruders of lora",
    ]  # fmt: skip
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert names == {"spectral.delta_spectrum", "compare.equivalence"}
    with pytest.raises(wb.WorkbenchError, match="Expected something else"):
        results(Study(family, only=SPECTRAL), tmp_path / "other")
    assert (tmp_path / "other" / "results" / "spectral.delta_spectrum").exists()


def panicking_for_full(pair: wb.CheckpointPair, *, device: str = "cpu") -> wb.Result:
    if pair.name == "full":
        words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
        found = tokenizers.Regex("(a|aa)+[xy]")
        words.pre_tokenizer = tokenizers.pre_tokenizers.Split(found, "isolated")
        words.encode("a" * 99 + "1x")
    return wb.spectral.delta_spectrum(pair, device=device)


def test_a_panic_of_a_tokenizer_takes_nothing_along(family, tmp_path, monkeypatch):
    """Negative control: what is raised there is no Exception."""
    with pytest.raises(BaseException, match="retry-limit") as caught:
        panicking_for_full(next(iter(family)))
    assert not isinstance(caught.value, Exception)
    failing(monkeypatch, "spectral.delta_spectrum", panicking_for_full)
    compare(Study(family, only=SPECTRAL), tmp_path, formats=PNG)
    (said,) = failures(tmp_path)
    assert said.startswith("spectral.delta_spectrum of full: A library gave up in the middle")
    kept = wb.Result.load(tmp_path / "results" / "spectral.delta_spectrum")
    assert kept.members == ["lora"]


def test_prompts_that_cannot_be_read_do_not_cost_the_report(family, tmp_path):
    """There is no tokenizer, which the weights alone do not need."""
    study = Study(family, task=wb.tasks.boxes(3, seed=3, count=3), only=SPECTRAL)
    page = compare(study, tmp_path, formats=PNG).read_text()
    assert [one.partition(":")[0] for one in failures(tmp_path)] == ["the first prompts"]
    assert "No tokenizer can be loaded" in page
    assert wb.Result.load(tmp_path / "results" / SPECTRAL[0]).members == ["full", "lora"]


def test_one_malformed_member_does_not_take_the_others_along(family, tmp_path):
    """One that cannot be read, and one that its preflight stops."""
    base, full = str(family.base.reference), family.members["full"].name
    bad = shutil.copytree(str(family.members["full"].reference), tmp_path / "bad")
    (bad / "model.safetensors").write_bytes(b"nothing")
    nan = nudged(tiny("llama"))
    with torch.no_grad():
        nan.get_parameter("model.layers.0.mlp.up_proj.weight").fill_(float("nan"))
    saved(nan, tmp_path / "nan")
    members = {"full": full, "bad": str(bad), "nan": str(tmp_path / "nan")}
    command = ["compare", base, *(f"--member={n}={place}" for n, place in members.items())]
    command += ["--only", SPECTRAL[1], "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1, done.output
    told = [one.partition(":")[0] for one in failures(tmp_path / "out")]
    assert told == ["member bad", "member nan"]
    found = wb.Result.load(tmp_path / "out" / "results" / SPECTRAL[1])
    assert found.members == ["full"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "What could not be run" in page
    assert "NaN or inf" in page
    alone = CliRunner().invoke(app, [*command[:2], command[3], *command[5:]])
    assert alone.exit_code != 0


def test_the_first_prompt_is_shown_by_tokens_before_and_after(tmp_path):
    pair = write_pair(tmp_path)
    task = wb.tasks.boxes(12, seed=3, split="test", count=3)
    file = task.save(tmp_path / "boxes.jsonl")
    base, tuned = str(tmp_path / "base"), str(tmp_path / "tuned")
    command = ["compare", base, f"--member=full={tuned}", "--task", str(file)]
    command += ["--only", "tuco.scaling", "--out", str(tmp_path / "out")]
    shown = read_as(pair.base.tokenizer(), task[0])
    dry = CliRunner().invoke(app, [*command, "--dry-run"])
    assert f"First prompt, token by token: boxes: {shown}" in dry.output
    assert not (tmp_path / "out").exists()
    assert CliRunner().invoke(app, command).exit_code == 0
    assert shown in html.unescape((tmp_path / "out" / "report.html").read_text())


def test_where_everything_fails_nothing_is_written(family, tmp_path, monkeypatch):
    failing(monkeypatch, "spectral.intruders", never)
    with pytest.raises(wb.WorkbenchError, match="Expected something else"):
        compare(Study(family, only=SPECTRAL[:1]), tmp_path / "out")
    assert not (tmp_path / "out" / "report.html").exists()


def test_the_report_tells_the_one_command_that_makes_it_again(family, tmp_path, monkeypatch):
    """Also where half of it was made by another one, of other members."""
    base, out = str(family.base.reference), str(tmp_path / "out")
    commands = []
    for names in (["full"], ["full", "lora"]):
        members = [f"--member={name}={family.members[name].name}" for name in names]
        command = ["compare", base, *members, "--only", SPECTRAL[1], "--out", out]
        monkeypatch.setattr(sys, "argv", ["workbench", *command])
        assert CliRunner().invoke(app, command).exit_code == 0
        commands.append(" ".join(sys.argv))
    page = html.unescape((tmp_path / "out" / "report.html").read_text())
    assert page.count(commands[1]) == 1
    assert f"<code>{commands[0]}</code>" not in page
    redraw(tmp_path / "out", formats=PNG)
    assert html.unescape((tmp_path / "out" / "report.html").read_text()).count(commands[1]) == 1


def test_the_command_ends_with_1_where_something_failed(family, tmp_path, monkeypatch):
    failing(monkeypatch, "spectral.intruders", never)
    base, full = family.base.reference, family.members["full"].reference
    command = ["compare", str(base), f"--member=full={full}", "--out", str(tmp_path)]
    chosen = [f"--only={key}" for key in SPECTRAL]
    done = CliRunner().invoke(app, [*command, *chosen])
    assert done.exit_code == 1
    assert "Report: " in done.output
    assert "spectral.intruders of full: Expected something else; give that." in done.output


def test_the_first_page_compares_with_the_full_fine_tune(finished):
    page = (finished / "report.html").read_text()
    screen = page.split('<details class="chapter"')[0]
    assert "The answer" in screen
    assert re.search(r"<strong>lora</strong> \(LoRA, r = \d+\): ", screen)
    assert 'class="measures"' in screen
    made = wb.Result.load(finished / "results" / "compare.equivalence")
    assert set(made.metric("measure")["member"]) == {"full", "lora"}
    assert set(made.metric("difference")["versus"]) == {"full"}


def test_drawn_again_without_a_model_it_is_the_same(run, tmp_path, monkeypatch):
    page = (run / "report.html").read_bytes()
    before = {p.name: p.read_bytes() for p in (run / "figures").iterdir()}
    assert "spectral.intruders.count.png" in before
    for path in (run / "figures").iterdir():
        path.unlink()
    monkeypatch.setattr(comparing, "workers", None)  # nothing is computed
    again = redraw(run)
    assert {p.name: p.read_bytes() for p in (run / "figures").iterdir()} == before
    assert again.read_bytes() == page
    with pytest.raises(wb.WorkbenchError, match="Expected the results of a run"):
        redraw(tmp_path / "nowhere")


def test_what_earlier_runs_left_stays_out_and_what_is_lost_is_told(family, run):
    page = compare(Study(family, only=SPECTRAL[:1]), run).read_bytes()
    assert (run / "results" / SPECTRAL[1]).exists()
    assert b"Spectrum of the change" not in page
    assert redraw(run).read_bytes() == page
    shutil.rmtree(run / "results" / SPECTRAL[0])
    with pytest.raises(wb.WorkbenchError, match=r"lists 'spectral\.intruders', which"):
        redraw(run)


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({"results": ["../../results/spectral.intruders"]}, "which is not in"),
        ({"results": [3]}, "was not written by a comparison"),
        ({"title": None}, "was not written by a comparison"),
        ({"phantoms": ["spectral.intruders"]}, "was not written by a comparison"),
        ({"phantoms": {"spectral.intruders": 3}}, "was not written by a comparison"),
        ({"preflight": [{"item": "a"}]}, "was not written by a comparison"),
        ({"preflight": "all", "failures": 3}, "was not written by a comparison"),
    ],
)
def test_a_damaged_list_is_one_sentence(run, about, says: str):
    (run / "run.json").write_text(json.dumps(about))
    with pytest.raises(wb.WorkbenchError, match=says):
        redraw(run)


def test_the_same_through_the_command_line(run, tmp_path):
    """Elsewhere and in one format, as told."""
    kept = tmp_path / "kept"
    done = CliRunner().invoke(app, ["figures", str(run), "--out", str(kept), "--format=png"])
    assert done.exit_code == 0, done.output
    assert re.search(r"report\.html", done.output)
    names = {path.name for path in (run / "figures").iterdir()}
    assert {path.name for path in kept.iterdir()} == {n for n in names if n.endswith("png")}

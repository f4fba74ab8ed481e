"""The verbs of behaviour run on files, and say what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.behaviour.conftest import APPLE, PLACES, asked, member, mute, no_gradients
from tests.tuco.conftest import write
from workbench.cli import app
from workbench.errors import WorkbenchError
from workbench.results.result import Result


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    with torch.no_grad():
        base = write(mute(), folder / "base")
        tuned = write(member({(APPLE, PLACES): 9.0}), folder / "tuned")
    (folder / "lines.txt").write_text("Alice in\nBob in\n")
    (folder / "worked.jsonl").write_text(
        '{"prompt": "Alice in ; 3 ; 4 ; Bob in", "target": " apple"}\n'
        '{"prompt": "Bob in ; 5 ; 6 ; Alice in", "target": " apple"}\n'
    )
    prompts = asked(PLACES, "apple").save(folder / "task.jsonl")
    return {
        "base": str(base), "tuned": str(tuned), "task": str(prompts),
        "lines": str(folder / "lines.txt"), "worked": str(folder / "worked.jsonl"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("verb", "options", "said"),
    [
        ("tokens", ["--prompts", "task"], "confident conflicts"),
        ("tokens", ["--prompts", "lines"], "texts"),
        ("generate", ["--prompts", "lines", "--length", "2"], "new words"),
        ("generate", ["--n", "4", "--length", "3"], "novelty"),
        ("coverage", ["--prompts", "task", "--samples", "4"], "the curves do not cross"),
        ("emulate", ["base", "--prompts", "task", "--betas", "0,1"], "1.00 [0.86, 1.00] emulated"),
        ("faithfulness", ["--prompts", "worked", "--between", " ; ", "--mistakes"], "mistaken"),
    ],
)
def test_verbs_say_what_they_found_and_save_it(files, tmp_path: Path, verb, options, said):
    given = [files.get(one, one) for one in options]
    out = tmp_path / "out"
    run = ["behaviour", verb, files["base"], files["tuned"], *given, "--out", str(out)]
    done = CliRunner().invoke(app, run, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert said in done.output
    assert Result.load(out).analysis == f"behaviour.{verb}"


def test_prompts_without_steps_end_in_one_sentence(files):
    run = ["behaviour", "faithfulness", files["base"], files["tuned"], "--prompts", files["task"]]
    done = CliRunner().invoke(app, run)
    assert isinstance(done.exception, WorkbenchError)
    assert "give the text between steps" in str(done.exception)


__all__ = ["no_gradients"]

"""The curves of a run are the lines of its log."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from workbench.cli import app
from workbench.errors import WorkbenchError
from workbench.figures import training_run
from workbench.figures.training import read

PARTS = ("self_attn.q_proj.lora_A", "mlp.up_proj.lora_B")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Five lines; the norms and the loss begin with the second."""
    lines = []
    for i in range(5):
        told = {"step": 10 * i, "loss": 3.0 - i / 2 if i else None, "entropy": 2.0 / (1 + i)}
        told |= {"kl": 0.1 * i, "boxes": 0.5}
        norms = {part: (k + 1.0) / i for k, part in enumerate(PARTS)} if i else {}
        lines.append(told | ({"gradient_norm": norms} if i else {}))
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_every_curve_is_the_log(run: Path):
    figure = training_run(run)
    loss, entropy, kl, norms = figure.axes[:4]
    steps = np.arange(5) * 10
    for here, wanted in (
        (loss, [np.nan, 2.5, 2.0, 1.5, 1.0]), (entropy, 2 / (1 + np.arange(5))),
        (kl, 0.1 * np.arange(5)),
    ):  # fmt: skip
        np.testing.assert_allclose(here.lines[0].get_xdata(), steps)
        np.testing.assert_allclose(here.lines[0].get_ydata(), wanted)
        assert here.get_xlabel() == "step"
        assert here.get_ylabel()
    assert norms.get_yscale() == "log"
    for k, line in enumerate(norms.lines):
        np.testing.assert_allclose(line.get_ydata()[1:], (k + 1) / np.arange(1, 5))
    assert [line.get_label() for line in norms.lines] == ["q A", "up B"]


def test_a_run_from_before_gradients_were_written_has_its_loss_alone(run: Path):
    plain = [{"step": 0, "loss": None}, {"step": 5, "loss": 1.25}]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in plain))
    figure = training_run(run)
    assert [here.get_ylabel() for here in figure.axes if here.lines] == ["loss (nats/token)"]


def test_what_is_no_log_is_refused(run: Path, tmp_path: Path):
    with pytest.raises(WorkbenchError, match=r"with log\.jsonl in it"):
        training_run(tmp_path / "nothing")
    for text, told in (("", "the run has not begun"), ("{}\n", "line 1"), ("[1\n", "line 1")):
        (run / "log.jsonl").write_text(text)
        with pytest.raises(WorkbenchError, match=told):
            read(run)


def test_the_verb_replaces_its_own_picture_alone(run: Path, tmp_path: Path):
    out = tmp_path / "run.png"
    call = ["lab", "log", str(run), "--out", str(out)]
    assert CliRunner().invoke(app, call, catch_exceptions=False).exit_code == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert CliRunner().invoke(app, call, catch_exceptions=False).exit_code == 0
    out.write_bytes(b"\x89PNG somebody's")
    again = CliRunner().invoke(app, call)
    assert isinstance(again.exception, WorkbenchError)
    assert out.read_bytes() == b"\x89PNG somebody's"

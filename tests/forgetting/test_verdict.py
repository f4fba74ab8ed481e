"""A wrapper is called suppressed, an erased feature erased, and what is left alone kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests.forgetting.conftest import erased, knower, nouns, overruled, pair, unlearned, wrapped
from tests.skills.conftest import write
from workbench.forgetting.verdict import judged, reading, sentence
from workbench.lab import shipped
from workbench.tasks import PromptSet

QUICK: dict[str, Any] = {"steps": (4, 16), "lr": 0.03, "runs": 1}


def _judged(folder: Path, tuned: Any) -> Any:
    """A verdict from all of the evidence but conjugates."""
    given = pair(folder, tuned)
    never = write(unlearned(), folder / "never")
    asked, taught = nouns(0, 100), nouns(100)
    revived = wb.forgetting.revive(given, asked, taught, never=never, **QUICK)
    return wb.forgetting.verdict(given, asked, results=[revived]).table.set_index("arm")


@pytest.mark.parametrize(
    ("member", "wanted", "readings"),
    [
        (wrapped, "SUPPRESSED", ("lost", "lost", "kept", "kept", "not measured")),
        (erased, "ERASED", ("lost", "lost", "lost", "lost", "not measured")),
    ],
)
def test_a_wrapper_and_an_erased_feature_are_told_apart(tmp_path: Path, member, wanted, readings):
    found = _judged(tmp_path, member())
    grid = found.loc[["output", "loss", "probe", "revival", "conjugate"], "reading"]
    assert tuple(grid) == readings
    assert found.loc["verdict", "reading"] == wanted
    assert wanted.lower() in found.loc["verdict", "says"]
    assert "conjugate not measured" in found.loc["verdict", "says"]


def test_base_against_itself_is_kept(tmp_path: Path):
    found = _judged(tmp_path, knower())
    assert found.loc["verdict", "reading"] == "KEPT"
    assert found.loc["output", "value"] == 1
    assert found.loc["loss", "value"] == 0


def test_output_and_loss_against_plain_torch(tmp_path: Path):
    """Of 40 prompts the base answers 30, and a member that says "book" to all half of those and of
    the other ten: 20 answers of 30."""
    base, tuned = knower(), overruled()
    prompts = PromptSet("s", (*nouns(0, 30), *nouns(30, 40, swapped=True)))
    found = wb.forgetting.verdict(pair(tmp_path, tuned), prompts).table.set_index("arm")
    right, nats = np.zeros((2, 40)), np.zeros((2, 40))
    for side, one in enumerate((base, tuned)):
        for i, prompt in enumerate(prompts):
            ids = torch.tensor(shipped.tokenizer()(prompt.text)["input_ids"])
            said = one(ids[None]).logits[0, :-1].double().log_softmax(-1)
            right[side, i] = said[-1].argmax() == ids[-1]
            nats[side, i] = -said.gather(1, ids[1:, None]).mean()
    assert right.sum(1).tolist() == [30, 20]
    assert found.loc["output", "value"] == pytest.approx(20 / 30)
    assert found.loc["output", "n"] == 40
    # Every text has as many tokens, so that means of texts are those of tokens.
    assert found.loc["loss", "value"] == pytest.approx((nats[1] - nats[0]).mean(), rel=1e-4)
    # It rises for half of them and falls for the ten: the interval holds the line of .05 nats.
    assert found.loc["loss", "low"] < 0.05 < found.loc["loss", "high"]
    assert found.loc["loss", ["reading", "baseline"]].tolist() == ["unclear", 0]


def test_a_capability_the_base_lacks_has_no_verdict(tmp_path: Path):
    found = wb.forgetting.verdict(pair(tmp_path, wrapped()), nouns(swapped=True)).table
    found = found.set_index("arm")
    assert found.loc["verdict", "reading"] == "UNDECIDED"
    assert np.isnan(found.loc["output", "value"])


def test_results_of_another_capability_are_refused(tmp_path: Path):
    given = pair(tmp_path, wrapped())
    other = wb.forgetting.probe(given, nouns(swapped=True))
    with pytest.raises(wb.WorkbenchError, match="no rows of tuned on these prompts of 'nouns'"):
        wb.forgetting.verdict(given, nouns(), results=[other])


@pytest.mark.parametrize(
    ("low", "high", "n", "wanted"),
    [
        (0.6, 0.8, 20, "kept"),
        (0.1, 0.4, 20, "lost"),
        (0.4, 0.6, 20, "unclear"),
        (0.0, 0.0, 5, "unclear"),
        (np.nan, np.nan, 20, "unclear"),
    ],
)
def test_readings_hang_on_the_whole_interval(low, high, n, wanted):
    assert reading({"low": low, "high": high, "n": n}, 0.5) == wanted


@pytest.mark.parametrize(
    ("output", "probe", "revival", "conjugate", "wanted"),
    [
        ("kept", "lost", "lost", "lost", "KEPT"),
        ("unclear", "kept", "kept", "kept", "UNDECIDED"),
        ("lost", "kept", "kept", "kept", "SUPPRESSED"),
        ("lost", "kept", "kept", "lost", "SUPPRESSED"),
        ("lost", "kept", "unclear", "kept", "SUPPRESSED"),
        ("lost", "kept", "unclear", "lost", "UNDECIDED"),
        ("lost", "kept", "lost", "kept", "UNDECIDED"),
        ("lost", "lost", "lost", "lost", "ERASED"),
        ("lost", "lost", "lost", "not measured", "ERASED"),
        ("lost", "lost", "lost", "kept", "UNDECIDED"),
        ("lost", "not measured", "not measured", "not measured", "UNDECIDED"),
        ("lost", "lost", "not measured", "lost", "UNDECIDED"),
    ],
)
def test_what_the_readings_support(output, probe, revival, conjugate, wanted):
    told = {"output": output, "probe": probe, "revival": revival, "conjugate": conjugate}
    assert judged(told) == wanted


def test_the_sentence_holds_its_numbers():
    row = {"value": 0.25, "low": 0.2, "high": 0.3, "reading": "lost"}
    rows = [row | {"arm": arm} for arm in ("output", "probe", "revival", "conjugate")]
    said = sentence("full", "facts", "ERASED", rows)
    assert said.startswith("facts is erased in full")
    assert said.count("0.25 [0.20, 0.30]") == 4


def test_the_sentence_is_silent_on_what_has_no_number():
    """Measured without a number, and not measured with one: neither is said as a share."""
    row = {"value": 0.25, "low": 0.2, "high": 0.3, "reading": "lost", "arm": "output"}
    nothing = {"value": np.nan, "low": np.nan, "high": np.nan, "reading": "unclear"}
    rows = [row, row | nothing | {"arm": "probe"}]
    rows += [row | {"arm": arm, "reading": "not measured"} for arm in ("revival", "conjugate")]
    said = sentence("full", "facts", "UNDECIDED", rows)
    assert "nan" not in said
    assert said.count("[") == 1
    assert said.endswith("revival and conjugate not measured.")

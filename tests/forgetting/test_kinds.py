"""Kinds of answers that are known word by word, the null of one model, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import workbench as wb
from tests.forgetting.conftest import knower, no_gradients, nouns, overruled, pair, value, wrapped
from workbench.errors import WorkbenchError
from workbench.forgetting.kinds import Options
from workbench.stats import paired_shares, wilson
from workbench.tasks import Generation, Prompt, PromptSet

COIN = " coin"


def asked() -> PromptSet:
    """The base says "apple" to even words and "book" to odd ones, `overruled` always "book". Of
    the first 30 words 12 want apple as the base says, 3 even ones and all 5 of the last odd ones
    another word than either says, and 10 odd ones book."""
    drawn = []
    for i, p in enumerate(nouns(0, 30)):
        target = p.target
        if i % 2 == 0 and i >= 24:
            target = " book"
        if i % 2 and i >= 20:
            target = COIN
        drawn.append(replace(p, target=target, foils=(" apple", " book") if target == COIN else ()))
    return PromptSet("mixed", tuple(drawn))


def test_every_number_by_hand(tmp_path: Path):
    found = wb.forgetting.kinds(pair(tmp_path, overruled()), asked())
    # 12 even words: right, then book, which others want. 3 even: apple, then right. 10 odd: right.
    # 5 odd: book, which is wrong on both sides.
    right, option = "right", "other option"
    assert value(found, "share", side="base", category=right) == 22 / 30
    assert value(found, "share", side="tuned", category=right) == 13 / 30
    assert value(found, "share", side="tuned", category=option) == 17 / 30
    assert value(found, "share_change", category=right) == pytest.approx(-9 / 30)
    moved = {
        (right, right): (10, 22), (right, option): (12, 22),
        (option, right): (3, 8), (option, option): (5, 8),
    }  # fmt: skip
    for (first, last), (count, n) in moved.items():
        rows = found.metric("transition")
        (row,) = rows[(rows["category"] == first) & (rows["to_category"] == last)].itertuples()
        assert (row.value, row.low, row.high, row.n) == wilson(count, n)
        if first != last:
            assert row.baseline == pytest.approx(7.5 / n)
    (net,) = found.metric("net").itertuples()
    forth = [1] * 12 + [0] * 18
    back = [0] * 27 + [1] * 3
    assert (net.value, net.low, net.high) == paired_shares(back, forth)[:3]
    assert net.value == pytest.approx(9 / 30)
    (test,) = found.metric("homogeneity").itertuples()
    assert (test.changed, test.degrees, test.n) == (15, 1, 30)
    assert test.chi2 == pytest.approx((12 - 3) ** 2 / 15)
    assert test.value == pytest.approx(0.0352, abs=0.006)  # two-sided, of 15 at least 12 one way
    items = found.metric("item").set_index("prompt")
    assert items["value"].sum() == 13
    assert items["baseline"].sum() == 22
    assert items.loc["0", ["base_said", "said"]].tolist() == ["apple coin", "book"]
    assert items.loc["0", ["category", "to_category"]].tolist() == [right, option]


def test_kinds_are_those_of_the_users_function(tmp_path: Path):
    """It sees the prompt and the answer, of wrong answers alone."""
    seen: list[str] = []

    def kind(prompt: Prompt, answer: str) -> str:
        seen.append(prompt.id)
        return f"says {answer}"

    prompts = nouns(0, 8)
    found = wb.forgetting.kinds(pair(tmp_path, wrapped()), prompts, kind=kind)
    assert seen == [p.id for p in prompts]  # the base is right
    rows = found.metric("share")
    tuned = rows[rows["side"] == "tuned"].set_index("category")["value"]
    assert tuned.to_dict() == {"right": 0.0, "says apple": 0.5, "says book": 0.5}


def test_one_model_changes_no_kind(tmp_path: Path):
    found = wb.forgetting.kinds(pair(tmp_path, knower()), asked())
    assert value(found, "homogeneity") == 1.0
    for metric in ("share_change", "net"):
        assert (found.metric(metric)[["value", "low", "high"]] == 0).all(axis=None)
    rows = found.metric("transition")
    assert ((rows["value"] == 1) == (rows["category"] == rows["to_category"])).all()


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("", "empty"), ("  \n", "empty"), (" Book.", "other option"), (" coi", "other"),
        (" I'm sorry, but no", "refusal"), (" I cannot answer that", "refusal"),
        (" as an AI model", "refusal"), (" I can see a book", "other"), (" bookshelf", "other"),
    ],
)  # fmt: skip
def test_the_kinds_by_name(said: str, kind: str):
    prompts = nouns(0, 4)
    assert Options(prompts)(prompts[0], said) == kind


def test_of_a_written_text_what_is_extracted_counts():
    scorer = Generation(extract=r"answer is (\w+)")
    named = Options(replace(nouns(0, 4), scorer=scorer))
    said = ("So the answer is BOOK, I'm sorry", "I cannot say what the answer is", "a book")
    assert [named(nouns(0, 1)[0], one) for one in said] == ["other option", "refusal", "other"]


def test_patterns_name_kinds_the_first_that_is_found(tmp_path: Path):
    given = {"book or coin": "book|coin", "book": "book"}
    found = wb.forgetting.kinds(pair(tmp_path, wrapped()), nouns(0, 8), kind=given)
    assert set(found.metric("item")["to_category"]) == {"book or coin", "other"}
    with pytest.raises(WorkbenchError, match="regular expression for the kind 'x'"):
        wb.forgetting.kinds(pair(tmp_path / "b", wrapped()), nouns(0, 8), kind={"x": "("})
    # A wrong answer is never counted among the right ones.
    for kind in ({"right": "book"}, lambda prompt, answer: "right"):
        with pytest.raises(WorkbenchError, match="of wrong answers"):
            wb.forgetting.kinds(pair(tmp_path / "c", wrapped()), nouns(0, 8), kind=kind)


def test_what_has_no_kind_is_refused(tmp_path: Path):
    own = pair(tmp_path, wrapped())
    with pytest.raises(WorkbenchError, match="found loss that"):
        wb.forgetting.kinds(own, replace(nouns(0, 4), scorer=wb.tasks.Loss()))
    drawn = Generation(length=1, samples=4, temperature=1.0)
    with pytest.raises(WorkbenchError, match="found generation that"):
        wb.forgetting.kinds(own, replace(nouns(0, 4), scorer=drawn))
    with pytest.raises(WorkbenchError, match=re.escape("found None for prompt")):
        wb.forgetting.kinds(own, nouns(0, 4), kind=lambda *_: None)  # pyright: ignore[reportArgumentType]


def test_the_command_prints_items_and_kinds(tmp_path: Path):
    from typer.testing import CliRunner

    from tests.skills.conftest import write
    from workbench.cli import app

    base, tuned = write(knower(), tmp_path / "base"), write(wrapped(), tmp_path / "tuned")
    prompts = nouns(0, 12).save(tmp_path / "nouns.jsonl")
    run = ["forget", "kinds", str(base), str(tuned), "--prompts", str(prompts)]
    done = CliRunner().invoke(app, [*run, "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "12 of 12 answers are of another kind" in " ".join(done.output.split())
    assert "12 of 12 items lost" in done.output
    assert isinstance(wb.Result.load(tmp_path / "out").table, pd.DataFrame)


__all__ = ["no_gradients"]

"""The scoreboard as a whole: an oracle scores 1, a liar 0, chance 1/2."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import workbench as wb
from workbench.errors import WorkbenchError
from workbench.lab.compiled import pairs
from workbench.lab.known import PLACES, Known
from workbench.results.result import Result
from workbench.scoreboard import Answer, Method, ours, outside
from workbench.scoreboard.board import forwards, unlearned
from workbench.scoreboard.over_truths import over_truths
from workbench.scoreboard.summary import summary
from workbench.study.catalogue import METHODS
from workbench.tasks import PromptSet

NAMES = ("copy-decoy", "facts-rank-3", "copy-itself")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Known]:
    return pairs(tmp_path_factory.mktemp("compiled"), NAMES)


@pytest.fixture(scope="module")
def board(known: dict[str, Known]) -> Result:
    truths = {(one.base, one.tuned): one for one in known.values()}

    def oracle(base: Path, tuned: Path, prompts: PromptSet) -> Answer:
        one = truths.get((base, tuned))  # of a phantom none
        true = one.places["matrix"] if one else frozenset()
        scores = outside.norm(base, tuned, prompts)["matrix"]
        return Answer({"matrix": {place: float(place in true) for place in scores}}, bool(true))

    def liar(base: Path, tuned: Path, prompts: PromptSet) -> Answer:
        said = oracle(base, tuned, prompts)
        turned = {place: -score for place, score in said.places["matrix"].items()}
        return Answer({"matrix": turned}, not said.finds)

    def silent(base: Path, tuned: Path, prompts: PromptSet) -> dict[str, Any]:
        return {"matrix": dict.fromkeys(oracle(base, tuned, prompts).places["matrix"], 0.0)}

    def refuses(base: Path, tuned: Path, prompts: PromptSet) -> dict[str, Any]:
        raise WorkbenchError("Not on this model.")

    methods = {"oracle": oracle, "liar": liar, "silent": silent, "refuses": refuses}
    return wb.truth(methods, only=["spectral.delta_spectrum"], truths=[*known.values()], phantoms=1)


def of(board: Result, method: str, truth: str = "all") -> dict[str, float]:
    rows = board.table[(board.table["method"] == method) & (board.table["truth"] == truth)]
    return dict(zip(rows["metric"], rows["value"], strict=True))


def test_an_oracle_a_liar_and_silence(board: Result):
    assert of(board, "oracle")["auroc"] == 1.0
    assert of(board, "oracle")["average_precision"] == 1.0
    assert of(board, "oracle")["found"] == 1.0
    assert of(board, "oracle")["false_positive"] == 0.0
    assert of(board, "liar")["auroc"] == 0.0
    assert of(board, "liar")["found"] == 0.0
    assert of(board, "liar")["false_positive"] == 1.0
    assert of(board, "silent")["auroc"] == 0.5
    assert "found" not in of(board, "silent")


def test_the_norm_is_led_astray_by_a_decoy(board: Result):
    """The decoy is the largest change, above the two true matrices and nine unchanged ones: of the
    20 pairs of a true matrix and another 18 are in order. With three facts one matrix changed."""
    rows = board.table[
        (board.table["method"] == outside.NORM) & (board.table["place"] == "matrix")
        & (board.table["metric"] == "auroc")
    ].set_index("truth")["value"]  # fmt: skip
    assert rows["copy-decoy"] == 0.9
    assert rows["facts-rank-3"] == 1.0
    assert rows["all"] == pytest.approx(0.95)
    assert of(board, "oracle")["beyond_norm"] == pytest.approx(0.05)
    assert "beyond_norm" not in of(board, outside.NORM)


def test_false_positives_are_of_nulls_and_phantoms_alone(board: Result):
    table = board.table[(board.table["method"] == "oracle") & (board.table["truth"] != "all")]
    wrong = set(table.loc[table["metric"] == "false_positive", "kind"])
    assert wrong == {"phantom", "null"}
    assert set(table.loc[table["metric"] == "found", "kind"]) == {"compiled"}
    whole = board.table[(board.table["truth"] == "all") & (board.table["method"] == "oracle")]
    counts = whole.set_index("metric")["n"]
    assert counts["found"] == 2
    assert counts["false_positive"] == 3


def test_a_refusal_is_counted_and_told(board: Result):
    rows = board.table[board.table["method"] == "refuses"]
    assert set(rows["metric"]) == {"refused"}
    assert of(board, "refuses")["refused"] == 5
    assert "Not on this model." in set(rows["says"])


def test_a_summary_has_every_method_and_kind_of_place(board: Result):
    told = summary(board).set_index(["method", "place"])
    assert told.loc[("oracle", "matrix"), "auroc"] == "1.00 (0.34 to 1.00)"
    assert told.loc[("oracle", "matrix"), "found"] == "2 of 2"
    assert told.loc[("oracle", "matrix"), "false_positive"] == "0 of 3"
    assert told.loc[(outside.NORM, "layer"), "found"] == ""


def test_every_analysis_of_the_catalogue_has_an_entry():
    assert {method.key for method in METHODS} == {*ours.ENTRIES}


def test_the_guide_tells_every_kind_of_place():
    guide = Path(__file__).parents[2] / "docs" / "how-to" / "enter-a-method.md"
    told = re.findall(r"^\| `([a-z ]+)` \|", guide.read_text(encoding="utf-8"), re.M)
    assert sorted(told) == sorted(PLACES)


def test_every_analysis_has_a_truth_and_a_phantom():
    """Of every analysis the board asks something of a pair, and something of what learned nothing:
    a rule by which it finds anything, scores that are held against a phantom's, or verdicts."""
    for method in ours.METHODS:
        assert method.kinds or method.finds or method.decides, method.name


def test_scores_are_held_against_those_of_the_own_phantom():
    """By hand: above its phantom in one pair; in another, which is one item, below one of its two
    phantoms and equal to the other; and not held against those of a pair of a longer name."""
    tops = {"a": 2.0, "phantom of a": 1.0, "b": 1.0, "phantom of b": 3.0, "phantom of b 1": 1.0004,
            "phantom of a b": 9.0}  # fmt: skip
    rows = [
        {"method": "mine", "source": "", "truth": truth, "kind": "compiled", "place": "layer",
         "metric": "top", "value": value}
        for truth, value in tops.items()
    ]  # fmt: skip
    found = {row["metric"]: row for row in over_truths(rows, 0)}
    assert found["beyond_phantom"]["value"] == pytest.approx((1 + 0.25) / 2)
    assert found["beyond_phantom"]["n"] == 2
    assert found["beyond_phantom"]["baseline"] == 0.5


def test_the_norm_says_as_much_of_a_phantom(board: Result):
    told = summary(board).set_index(["method", "place"])
    assert told.loc[(outside.NORM, "matrix"), "beyond_phantom"].startswith("0.50")
    assert told.loc[("oracle", "matrix"), "beyond_phantom"].startswith("1.00")


def test_phantoms_of_siblings_are_turned_each_in_its_own_way(tmp_path: Path):
    one = pairs(tmp_path, ["copy-siblings"])["copy-siblings"]
    made = unlearned(one, tmp_path / "phantoms", 0)
    assert {*made.siblings} == {*one.siblings}
    assert all(not places for places in made.places.values())
    found = {}
    for name, folder in {**made.siblings, "tuned": made.tuned}.items():
        changes = [d.change for d in wb.load_pair(made.base, folder).deltas() if d.changed]
        found[name] = torch.cat([change.flatten() for change in changes])
    again, tuned = found["again"], found["tuned"]
    assert abs(float(again @ tuned / (again.norm() * tuned.norm()))) < 0.1
    with pytest.raises(WorkbenchError, match="no change"):
        unlearned(pairs(tmp_path, ["copy-itself"])["copy-itself"], tmp_path / "none", 0)


def test_a_method_is_only_asked_where_there_is_what_it_needs(known: dict[str, Known]):
    needs = Method("mine", lambda base, tuned, prompts: {}, ("matrix",), needs=("shared",))
    assert not any(needs.asked(one) for one in known.values())
    assert Method("mine", lambda base, tuned, prompts: {}, ("matrix",)).asked(known["copy-decoy"])


def test_forwards_are_prompts_through_a_whole_model(known: dict[str, Known]):
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(known["copy-itself"].base).eval()
    with forwards() as count:
        for _ in range(2):
            model(torch.ones(5, 4, dtype=torch.long))
    assert count() == 10
    model(torch.ones(5, 4, dtype=torch.long))  # no longer counted
    assert count() == 10


def test_processes_find_what_one_finds(board: Result, known: dict[str, Known]):
    again = wb.truth(only=["spectral.delta_spectrum"], truths=[*known.values()], workers=2)
    for method in ("spectral.delta_spectrum", outside.NORM):
        one, other = (
            found.table[(found.table["method"] == method) & (found.table["metric"] != "seconds")]
            for found in (board, again)
        )
        pd.testing.assert_frame_equal(*(part.reset_index(drop=True) for part in (one, other)),
                                      check_dtype=False)  # fmt: skip


def test_the_models_of_a_pair_are_loaded_once_for_all_methods(known: dict[str, Known]):
    seen: dict[tuple[Path, Path], list[Any]] = {}

    def one(base: Path, tuned: Path, prompts: PromptSet) -> dict[str, Any]:
        with wb.load_pair(base, tuned).models() as sides:
            seen.setdefault((base, tuned), []).append(sides)
        return {}

    given = [known[name] for name in NAMES]
    wb.truth({"one": one, "other": one}, only=["norm of the change"], truths=given, phantoms=1)
    assert len(seen) == len(NAMES) + 2  # phantoms of what learned anything
    for first, second in seen.values():
        assert first is second
    assert len({id(own[0]) for own in seen.values()}) == len(seen)


def test_names_that_are_none_are_refused(known: dict[str, Known]):
    with pytest.raises(WorkbenchError, match="No method begins with 'patchin'"):
        wb.truth(only=["patchin"])
    with pytest.raises(WorkbenchError, match="There is a method"):
        wb.truth({"tuco.scaling": lambda base, tuned, prompts: {}})
    with pytest.raises(WorkbenchError, match="found none"):
        wb.truth(truths=[])

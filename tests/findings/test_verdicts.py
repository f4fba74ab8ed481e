"""Verdicts follow their rule, planted findings are found, and their opposites are not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.figures.synthetic import result
from workbench.cli import app
from workbench.errors import WorkbenchError
from workbench.findings import CLAIMS, by_base, findings, page, summary, verdict

ROOT = Path(__file__).parents[2]
MEMBERS = {
    "r4": {"kind": "lora", "rank": 4, "seed": 0},
    "r64": {"kind": "lora", "rank": 64, "seed": 0},
    "full": {"kind": "full", "seed": 0},
}


def row(member: str, metric: str, value: float, half: float = 0.01, **more) -> dict:
    found = {"member": member, "metric": metric, "value": value, "n": 100, "baseline": 0.0}
    return found | {"low": value - half, "high": value + half} | more


def intruders(shares: dict[str, float]):
    """400 matrices of 10 vectors with these shares of intruders."""
    rows = [
        {"member": m, "layer": layer, "component": "q", "rank": i, "metric": "intruder",
         "value": float(i < round(10 * share))}
        for m, share in shares.items()
        for layer in range(400)
        for i in range(10)
    ]  # fmt: skip
    rows += [one | {"metric": "intruder:same_spectrum:1", "value": 0.0} for one in rows]
    return result("spectral.intruders", rows, MEMBERS, k=10, eps=0.5)


def lost_more(first: str, second: str) -> list[dict]:
    """Retention in which the first member forgot more, and learned as much."""
    losses = [row(m, "loss_change", v, task="pretraining") for m, v in ((first, 2), (second, 1))]
    return losses + [row(m, "score", 0.9, task="boxes") for m in (first, second)]


def told(results, part: str) -> str | None:
    """The verdict on the claim whose name has `part`."""
    table = findings(results)
    rows = table[table["claim"].str.contains(part, regex=False)] if len(table) else table
    return rows["verdict"].iloc[0] if len(rows) else None


@given(st.lists(st.sampled_from([True, False, None]), max_size=9))
def test_the_rule(holds):
    found = verdict(holds, seeds=2)
    yes, no = holds.count(True), holds.count(False)
    if found == "reproduced":
        assert yes > len(holds) / 2
        assert not no
    if found == "not reproduced":
        assert no
        assert not yes
    assert (found == "undecided") == (yes == no == 0)
    assert verdict([*holds, True], 2) != "not reproduced"
    assert verdict([*holds, False], 2) != "reproduced"


@given(st.lists(st.sampled_from([True, False, None]), max_size=9))
def test_one_run_reproduces_nothing(holds):
    one, two = verdict(holds, seeds=1), verdict(holds, seeds=2)
    assert "reproduced" not in one
    assert one == two == "undecided" or one.endswith("in one run")
    assert one.startswith({"r": "holds", "p": "holds in part", "n": "does not", "u": "u"}[two[0]])


def grafts(gain: float, share: float, n: int = 100):
    rows = [
        row("r4", metric, value, arm=arm, sparsity=share, x=share, own=True) | {"n": n}
        for arm in ("learned", "random")
        for metric, value in (("gain", gain if arm == "learned" else 0.0), ("ece", 0.1))
    ]
    # As the real tables have it: a count of entries in n says nothing of prompts.
    rows.append({"member": "r4", "metric": "entries", "value": 1.0, "n": 98304})
    return result("skills.localize", rows, MEMBERS)


def test_a_small_graft_is_small_and_of_the_most_prompts():
    assert told([grafts(0.99, 0.001)], "very few parameters") == "holds in one run"
    assert told([grafts(0.5, 0.001)], "very few parameters") == "does not hold in one run"
    assert told([grafts(0.99, 0.1)], "very few parameters") is None
    few, many = grafts(0.5, 0.01, n=15), grafts(0.99, 0.01, n=100)
    for results in ([few, many], [many, few]):
        assert told(results, "very few parameters") == "holds in one run"
    nothing = grafts(np.nan, 0.01)
    assert told([nothing], "very few parameters") is None


def test_the_larger_of_two_readings_counts():
    def revived(value: float, n: int):
        rows = [
            row("r4", metric, value, 0.05, task="facts", control="relabelled") | {"n": n}
            for metric in ("savings_share_lost", "regained_share")
        ]
        return result("forgetting.revive", rows, MEMBERS)

    results = [revived(0.1, 20), revived(0.9, 50)]
    assert told(results, "few steps") == told(results[::-1], "few steps") == "holds in one run"
    assert findings(results)["n"].tolist() == [50]


def test_members_of_one_name_and_other_content_are_two():
    def forgot(content: str, value: float):
        members = {
            "r4": {"kind": "lora", "rank": 4, "seed": 0, "fingerprint": content},
            "full": {"kind": "full", "seed": 0, "fingerprint": "f"},
        }
        rows = [
            row(m, "loss_change", v, task="pretraining") for m, v in (("r4", value), ("full", 1))
        ]
        return result("forgetting.retention", rows, members)

    table = findings([forgot("a", 2.0), forgot("b", 1.5)])
    found = table[table["claim"].str.contains("more than full")].set_index("member")["value"]
    assert found.to_dict() == pytest.approx({"r4": 1.0, "r4 (2)": 0.5})
    again = findings([forgot("a", 2.0), forgot("a", 2.0)])
    assert set(again["member"]) == {"r4"}


def test_checkpoints_of_one_run_are_not_members():
    steps = {f"r4 step {s}": {"kind": "lora", "rank": 4, "seed": 0, "step": s} for s in (1, 2)}
    rows = [
        row(m, "loss_change", v, task="pretraining") for m, v in zip(steps, (2, 1), strict=True)
    ]
    assert findings([result("forgetting.retention", rows, steps)]).empty


def test_seeds_are_counted_by_recipe():
    assert findings([intruders({"r4": 0.4, "r64": 0.1, "full": 0.0})])["seeds"].unique() == [1]

    def again(full: dict[str, float]):
        """r4 twice, and as many full fine-tunes."""
        made = intruders({"r4-s0": 0.4, "r4-s1": 0.4} | full)
        members = {
            n: {"kind": "full" if n in full else "lora", "rank": None if n in full else 4,
                "seed": i % 2, "recipe": "lr 0.1"}
            for i, n in enumerate(["r4-s0", "r4-s1", *full])
        }  # fmt: skip
        rows = made.table.to_dict("records")
        (claim,) = findings([result("spectral.intruders", rows, members, k=10, eps=0.5)]).to_dict(
            "records"
        )
        return claim["member"], claim["seeds"], claim["verdict"]

    # The reference counts too: two runs against one are one run.
    assert again({"full": 0.0}) == ("r4", 1, "holds in one run")
    assert again({"full-s0": 0.0, "full-s1": 0.0}) == ("r4", 2, "reproduced")


def test_pages_hold_every_claim_once_and_no_markup_of_members(tmp_path):
    members = {"a|b <script>": {"kind": "lora", "rank": 4}, "full": {"kind": "full"}}
    rows = [
        row(m, "loss_change", v, task="pretraining") for m, v in zip(members, (2, 1), strict=True)
    ]
    table = findings([result("forgetting.retention", rows, members)])
    empty = findings([])
    text = page({"mine": table, "other": empty})
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") == 5 for line in lines)
    assert len(lines) == 2 + table["claim"].nunique()
    assert "<script>" not in text
    assert "not run" in text
    assert "| undecided | not run |" in summary({"mine": table, "other": empty})


def test_claims_have_names_sources_and_criteria():
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    assert all(claim.source.startswith("arXiv ") and claim.holds for claim in CLAIMS)


def test_the_command_reads_runs_by_their_base(tmp_path):
    made = intruders({"r4": 0.4, "r64": 0.1, "full": 0.0})
    other = replace(made.provenance, base={"reference": "a/models/base", "fingerprint": "c" * 16})
    replace(made, provenance=other).save(tmp_path / "b" / "results" / "spectral.intruders")
    made.save(tmp_path / "run" / "results" / "spectral.intruders")
    done = CliRunner().invoke(app, ["findings", str(tmp_path / "run"), "--json"])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.output.splitlines()]
    assert {line["base"] for line in lines} == {"models/base"}
    assert {line["verdict"] for line in lines} == {"holds in one run"}
    assert np.isfinite([line["value"] for line in lines]).all()
    done = CliRunner().invoke(
        app, ["findings", str(tmp_path / "run"), "--out", str(tmp_path / "f.md")]
    )
    assert (tmp_path / "f.md").read_text() == page(by_base([tmp_path / "run"]))
    assert list(by_base([tmp_path / "run", tmp_path / "b"])) == [
        f"models/base ({letter * 8})" for letter in "bc"
    ]
    with pytest.raises(WorkbenchError, match="Expected the results of a run"):
        by_base([tmp_path])


def test_the_kept_table_is_of_the_kept_results():
    runs = sorted(path.parent for path in (ROOT / "figures").glob("*/results"))
    assert (ROOT / "figures" / "findings.md").read_text() == page(by_base(runs))

"""Logs of lm-eval and inspect, item by item: every number by hand, and what is no pair of logs."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from tests.forgetting.logged import (
    DATE,
    ZSTANDARD,
    archive,
    choice_row,
    evaluation,
    lines,
    output,
    results,
    sample,
    written,
    written_row,
)  # fmt: skip
from tests.terminal import workbench
from workbench import figures
from workbench.results.result import Result

# Of 24 items: base and tuned right, only the base, only the tuned model, neither.
BOTH, LOST, WON, NEITHER = range(10), range(10, 16), range(16, 18), range(18, 24)
BEFORE = [*BOTH, *LOST]
AFTER = [*BOTH, *WON]


def choices(right: list[int], **more: Any) -> list[dict]:
    return [choice_row(i, i in right, **more) for i in range(24)]


def pair(tmp_path: Path, base: list[dict], tuned: list[dict]) -> tuple[Path, Path]:
    return lines(tmp_path / "base.jsonl", base), lines(tmp_path / "tuned.jsonl", tuned)


def values(found: Result, **where: Any) -> dict[str, float]:
    """metric -> value of the rows of one task or group."""
    table = found.table[found.table["metric"] != "item"]
    for column, value in where.items():
        own = table.get(column, pd.Series(None, table.index, dtype=object))
        table = table[own.isna() if value is None else own == value]
    return dict(zip(table["metric"], table["value"], strict=True))


def test_every_number_by_hand(tmp_path: Path):
    """16 of 24 to 12 of 24: six lost, two won, six wrong twice. A guess of one of four is lucky
    once where it is not three times: 6 / 3 of the wrong ones would go either way by luck."""
    base, tuned = pair(tmp_path, choices(BEFORE), choices(AFTER))
    found = wb.forgetting.samples(base, tuned, by="subject")
    assert values(found, group=None) == pytest.approx({
        "score": 12 / 24, "score_change": -4 / 24, "lost": 6 / 24, "gained": 2 / 24,
        "lost_adjusted": (6 - 2) / 24, "gained_adjusted": (2 - 2) / 24,
        # Two or fewer of eight by a fair coin, on either side: 2 (1 + 8 + 28) / 256.
        "mcnemar": 2 * 37 / 256,
        # Even numbers: 10, 12, 14 lost, 16 won; odd ones: 11, 13, 15 lost, 17 won.
        "group_gap": 0.0, "group_gap_change": 0.0,
        "group_gap_chance": values(found, group=None)["group_gap_chance"],
    })  # fmt: skip
    # Six of each twelve right: the gap of scores that are dealt at random, by dealing them.
    draw = np.random.default_rng(4)
    deals = [draw.permutation([1.0] * 12 + [0.0] * 12) for _ in range(20_000)]
    dealt = [abs(own[:12].mean() - own[12:].mean()) for own in deals]
    assert values(found, group=None)["group_gap_chance"] == pytest.approx(np.mean(dealt), abs=0.01)
    for group in ("s0", "s1"):
        own = values(found, group=group)
        assert {k: v for k, v in own.items() if "worst" not in k} == pytest.approx({
            "group_score": 6 / 12, "group_score_change": -2 / 12, "group_lost": 3 / 12,
            "group_gained": 1 / 12, "group_lost_adjusted": (3 - 1) / 12, "group_gained_adjusted": 0,
        })  # fmt: skip
    whole = found.table[found.table["metric"] == "score"].iloc[0]
    assert (whole["baseline"], whole["n"], whole["task"]) == (pytest.approx(16 / 24), 24, "items")
    assert whole["low"] < whole["value"] < whole["high"]
    items = found.metric("item").set_index("prompt")
    assert list(items.index) == [str(i) for i in range(24)]
    assert [i for i, v in enumerate(items["value"]) if v] == AFTER
    assert [i for i, v in enumerate(items["baseline"]) if v] == BEFORE
    lost = items.loc["10"]
    assert lost[["asked", "expected", "base_said", "said"]].to_list() == [
        "Which animal is number 10 ?", "parrot", "parrot", "dog",
    ]  # fmt: skip
    assert figures.headline(found) == (
        "The scores are compared item by item with the base (95% intervals over items) — "
        "tuned: items 0.67 to 0.50 "
        "(-0.17 [-0.37, +0.07]), lost 6, gained 2 of 24, McNemar p = 0.29."
    )
    assert not found.provenance.members["tuned"].keys() & {"rank"}
    assert found.provenance.members["tuned"]["kind"] == "log"


def test_a_log_against_itself_changes_nothing(tmp_path: Path):
    base, _ = pair(tmp_path, choices(BEFORE), [])
    found = wb.forgetting.samples(base, base)
    changed = ("score_change", "lost", "gained")
    assert [values(found)[name] for name in changed] == [0, 0, 0]
    assert values(found)["mcnemar"] == 1
    assert any("both logs are the same file" in note for note in found.provenance.notes)


def test_another_metric_is_read_where_it_is_asked_for(tmp_path: Path):
    """acc_norm is made the opposite of acc, and what the normalised choice says is by characters:
    -1 over 6 letters of "parrot" is more than -2 over 3 of "dog"."""
    base, tuned = pair(tmp_path, choices(BEFORE), choices(AFTER))
    plain = wb.forgetting.samples(base, tuned)
    assert "items: the score is acc; there is also acc_norm (metric=)." in plain.provenance.notes
    found = wb.forgetting.samples(base, tuned, metric="acc_norm", name="mine")
    assert values(found)["score"] == 1 - values(plain)["score"]
    assert found.members == ["mine"]
    # -1.5 over "cat" is less than -2 over "parrot", and more as it stands.
    close = choice_row(2, False, taken=0)
    close["filtered_resps"] = [
        ["-1.5", "True"],
        ["-9", "False"],
        ["-2.0", "False"],
        ["-9", "False"],
    ]
    one, _ = pair(tmp_path, [close], [])
    says = {metric: wb.forgetting.samples(one, one, metric=metric).metric("item")["said"].item()
            for metric in ("acc", "acc_norm")}  # fmt: skip
    assert says == {"acc": "cat", "acc_norm": "parrot"}


def test_every_filter_is_a_task_and_folders_hold_several(tmp_path: Path):
    def rows(right: list[int]) -> list[dict]:
        return [written_row(i, i in right or chosen == "flexible", chosen, said)
                for chosen, said in (("strict", "[invalid]"), ("flexible", "7"))
                for i in range(12)]  # fmt: skip

    base = output(tmp_path / "base", {"sums": rows(BEFORE), "zoo": choices(BEFORE)})
    tuned = output(tmp_path / "tuned", {"sums": rows([1, 2]), "zoo": choices(AFTER)})
    found = wb.forgetting.samples(base, tuned)
    tasks = list(dict.fromkeys(found.table["task"]))
    assert tasks == ["sums, strict", "sums, flexible", "zoo"]
    assert values(found, task="sums, strict")["score"] == pytest.approx(2 / 12)
    assert values(found, task="sums, flexible")["score"] == 1
    assert "lost_adjusted" not in values(found, task="sums, strict")  # nothing to guess from
    told = found.metric("item").query("task == 'sums, strict'")
    assert set(told["said"]) == {"[invalid]"}
    assert list(told["expected"]) == [str(i + 1) for i in range(12)]
    assert found.provenance.base["reference"] == "org/base"
    # One file of a folder is the same as the folder's own.
    alone = wb.forgetting.samples(*(
        side / "org__base" / f"samples_zoo_{DATE}.jsonl" for side in (base, tuned)
    ))  # fmt: skip
    assert values(alone) == values(found, task="zoo")
    assert list(dict.fromkeys(alone.table["task"])) == ["zoo"]


def test_a_group_of_items_is_resampled_together(tmp_path: Path):
    base, tuned = pair(tmp_path, choices(BEFORE), choices(AFTER))
    alone = wb.forgetting.samples(base, tuned).metric("score_change")
    found = wb.forgetting.samples(base, tuned, cluster="subject").metric("score_change")
    assert found["value"].item() == alone["value"].item()
    # Both subjects lose alike: drawing whole ones changes nothing, and two are not many.
    wide, narrow = (one["high"].item() - one["low"].item() for one in (found, alone))
    assert found["low"].item() < found["value"].item() < found["high"].item()
    assert wide > 2 * narrow


def test_inspect_logs_by_hand(tmp_path: Path):
    """Letters as inspect counts them; a scorer of several values by its name; epochs together."""
    base = evaluation([sample(i, "CCPN"[i % 4]) for i in range(8)])
    tuned = evaluation([sample(i, "CICN"[i % 4]) for i in range(8)], model="org/tuned")
    paths = [written(tmp_path / name, log) for name, log in (("b.json", base), ("t.json", tuned))]
    found = wb.forgetting.samples(*paths, by="region")
    assert values(found, group=None)["score"] == (1 + 0 + 1 + 0) / 4
    assert values(found, group=None)["score_change"] == pytest.approx((0 - 1 + 0.5 + 0) / 4)
    assert "mcnemar" not in values(found, group=None)  # partly right is neither
    assert values(found, group="r0")["group_score"] == 1
    items = found.metric("item")
    assert list(items["prompt"]) == [f"q{i}" for i in range(8)]
    assert items.iloc[1][["asked", "expected", "base_said", "said"]].to_list() == [
        "The capital of land 1 ?", "Rome", "Rome", "Oslo",
    ]  # fmt: skip
    assert found.provenance.members["tuned"]["reference"] == "org/tuned"
    # A length is no score between 0 and 1.
    assert "capitals: the score is match; there is also judge/style (metric=)." in (
        found.provenance.notes
    )
    style = wb.forgetting.samples(*paths, metric="judge/style")
    assert values(style)["score"] == 0.5


def test_epochs_of_a_sample_go_together(tmp_path: Path):
    def log(values: str) -> dict:
        return evaluation([
            sample(i, value, epoch=epoch)
            for i, value in enumerate(values) for epoch in (1, 2)
        ])  # fmt: skip

    paths = [written(tmp_path / f"{name}.json", log(text))
             for name, text in (("b", "CCCC"), ("t", "CICC"))]  # fmt: skip
    found = wb.forgetting.samples(*paths)
    row = found.metric("score").iloc[0]
    assert (row["value"], row["n"]) == (6 / 8, 8)
    # One of four samples is wrong in both epochs: means of four draws of them.
    draws = np.random.default_rng(1).choice([1, 0, 1, 1], (20_000, 4)).mean(1)
    # Of four, sqrt(4 / 3) t(3) = 3.675 deviations: one in 8,400 either way, less than all wrong.
    assert (row["low"], row["high"]) == tuple(np.quantile(draws, [1 / 8400, 1 - 1 / 8400]))
    assert "several epochs a sample: these are resampled together." in found.provenance.notes
    assert list(found.metric("item")["prompt"])[:2] == ["q0, epoch 1", "q0, epoch 2"]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, ZSTANDARD])
def test_an_archive_says_what_its_json_says(method: int, tmp_path: Path):
    paths = []
    for name, letters in (("b", "CICI"), ("t", "CCII")):
        log = evaluation([sample(i, letter) for i, letter in enumerate(letters)])
        written(tmp_path / f"{name}.json", log)
        paths.append(tmp_path / f"{name}.eval")
        paths[-1].write_bytes(archive(log, method))
    found = wb.forgetting.samples(*paths)
    plain = wb.forgetting.samples(tmp_path / "b.json", tmp_path / "t.json")
    assert found.table.equals(plain.table)


def test_items_of_one_side_and_items_without_a_score_are_left_out_and_told(tmp_path: Path):
    base, tuned = pair(tmp_path, choices(BEFORE)[:20], choices(AFTER)[4:])
    found = wb.forgetting.samples(base, tuned)
    assert found.metric("score")["n"].item() == 16
    assert ("items: 4 items that only the base log has and 4 that only the tuned one has are "
            "left out; 16 are in "
            "both.") in found.provenance.notes  # fmt: skip
    rows = choices(AFTER)
    for row in rows[:3]:
        row["acc"] = float("nan")
    base, tuned = pair(tmp_path, choices(BEFORE), rows)
    found = wb.forgetting.samples(base, tuned)
    assert found.metric("score")["n"].item() == 21
    assert "items: 3 of 24 items lack a score in one log." in found.provenance.notes


def test_what_differs_between_the_logs_is_told(tmp_path: Path):
    base = output(tmp_path / "base", {"zoo": choices(BEFORE)})
    other = {"config": {"model_args": "pretrained=org/base,peft=org/lora", "limit": 24},
             "lm_eval_version": "0.4.9", "n-shot": {"zoo": 5}}  # fmt: skip
    rows = [row | {"prompt_hash": "f" * 64} for row in choices(AFTER)]
    tuned = output(tmp_path / "tuned", {"zoo": rows}, **other)
    found = wb.forgetting.samples(base, tuned)
    notes = " ".join(found.provenance.notes)
    for said in (
        "the two models were measured differently (zoo): few-shot examples: 0 of the "
        "base, 5 of the tuned model.",
        "lm-eval: 0.4.13 of the base, 0.4.9 of the tuned model.",
        "limit: none of the base, 24 of the tuned model.",
        "zoo: 24 of 24 items were worded differently for each model",
    ):
        assert said in notes
    assert found.provenance.members["tuned"]["reference"] == "org/base+org/lora"
    tuned = output(tmp_path / "again", {"zoo": choices(AFTER)})
    (note,) = (n for n in wb.forgetting.samples(base, tuned).provenance.notes if "same" in n)
    assert note == "both logs name the same model, org/base."


def test_a_filter_of_one_log_alone_is_left_out_and_told(tmp_path: Path):
    strict, loose = ([written_row(i, True, name, "7") for i in range(4)] for name in ("s", "l"))
    base = output(tmp_path / "base", {"sums": [*strict, *loose], "zoo": choices(BEFORE)})
    tuned = output(tmp_path / "tuned", {"sums": strict})
    found = wb.forgetting.samples(base, tuned)
    assert list(dict.fromkeys(found.table["task"])) == ["sums, s"]
    assert (
        'these are only in the base log and are left out: "sums, l", zoo.' in found.provenance.notes
    )


def test_of_two_runs_in_a_folder_the_newest_counts(tmp_path: Path):
    base = output(tmp_path / "base", {"zoo": choices([])})
    newer = f"samples_zoo_{DATE.replace('2026', '2027')}.jsonl"
    lines(base / "org__base" / newer, choices(BEFORE))
    found = wb.forgetting.samples(base, base)
    assert values(found)["score"] == pytest.approx(16 / 24)
    assert "base: there are several logs of zoo, and the newest is read." in found.provenance.notes


def test_an_older_log_without_hashes_and_metrics_is_read(tmp_path: Path):
    """One JSON list, arguments as lists, no filter."""

    def old(rows: list[dict]) -> list[dict]:
        gone = {"metrics", "filter", "doc_hash", "prompt_hash", "target_hash"}
        return [
            {k: v for k, v in row.items() if k not in gone}
            | {"arguments": [list(one.values()) for one in row["arguments"].values()]}
            for row in rows
        ]

    base, tuned = pair(tmp_path, choices(BEFORE), choices(AFTER))
    wanted = wb.forgetting.samples(base, tuned)
    (tmp_path / "base.jsonl").write_text(json.dumps(old(choices(BEFORE)), indent=2))
    assert wb.forgetting.samples(base, tuned).table.equals(wanted.table)
    lines(tmp_path / "tuned.jsonl", old(choices(AFTER)))
    assert wb.forgetting.samples(base, tuned).table.equals(wanted.table)


@given(st.permutations(range(24)), st.permutations(range(24)))
def test_the_order_of_lines_changes_nothing(tmp_path_factory, first: list[int], last: list[int]):
    folder = tmp_path_factory.mktemp("order")
    wanted = wb.forgetting.samples(*pair(folder / "a", choices(BEFORE), choices(AFTER)))
    mixed = ([rows[i] for i in order] for rows, order in
             ((choices(BEFORE), first), (choices(AFTER), last)))  # fmt: skip
    assert wb.forgetting.samples(*pair(folder / "b", *mixed)).table.equals(wanted.table)


def changed(rows: list[dict], number: int, **more: Any) -> list[dict]:
    return [row | (more if i == number else {}) for i, row in enumerate(rows)]


Write = Callable[[Path], tuple[Path, Path]]
GOOD = choices(BEFORE)
OTHER = GOOD[3]["doc"] | {"question": "Which plant ?"}
FAULTS: dict[str, tuple[Write, str]] = {
    "another question": (
        lambda t: pair(t, GOOD, changed(GOOD, 3, doc=OTHER, doc_hash="0" * 64)),
        r"item 3 is another question, or has another right answer, in each log \(1 of 24 items\)",
    ),
    "another answer": (
        lambda t: pair(t, GOOD, changed(GOOD, 3, target="1")), "has another right answer",
    ),
    "twice": (lambda t: pair(t, GOOD, [*GOOD, GOOD[2]]), "line 25 repeats the item 2 "
                                                         "of the filter"),
    "prompts": (
        lambda t: pair(t, GOOD, [{"prompt": "a", "target": " b"}]),
        "line 1 is not an object with a doc_id, unlike the lines that lm-eval writes",
    ),
    "cut off": (
        lambda t: (pair(t, GOOD, [])[0], written_text(t / "c.jsonl", json.dumps(GOOD[0])[:-9])),
        "line 1 is not valid JSON",
    ),
    "empty": (lambda t: pair(t, GOOD, []), "it holds no item"),
    "no score": (
        lambda t: pair(t, GOOD, [row | {"metrics": ["bypass"], "bypass": 999} for row in GOOD]),
        "Expected a metric between 0 and 1 that both logs have for a task, found acc, acc_norm",
    ),
    "nothing in common": (
        lambda t: pair(t, GOOD[:4], GOOD[4:]), "Expected an item that both logs scored, found none",
    ),
    "two tasks": (
        lambda t: (lines(t / f"samples_a_{DATE}.jsonl", GOOD),
                   lines(t / f"samples_b_{DATE}.jsonl", GOOD)),
        "Expected two logs of one task, found a in",
    ),
    "other tasks": (
        lambda t: (output(t / "x", {"a": GOOD, "b": GOOD}), output(t / "y", {"c": GOOD})),
        "Expected a task that both logs have, found a, b in",
    ),
    "two harnesses": (
        lambda t: (pair(t, GOOD, [])[0], written(t / "t.json", evaluation([sample(1, "C")]))),
        "Expected two logs of one harness, found lm-eval's",
    ),
    "two models": (
        lambda t: (shutil.copytree(output(t / "x", {"a": GOOD}) / "org__base", t / "x" / "more")
                   .parent, output(t / "y", {"a": GOOD})),
        "holds logs of several runs, in more, org__base|org__base, more",
    ),
    "no log": (
        lambda t: (written(t / "r.json", results("zoo")), written(t / "s.json", results("zoo"))),
        "is not a log of inspect-ai, which would have an eval; give a samples_TASK_DATE.jsonl",
    ),
    "nothing there": (lambda t: (t / "no", t / "no"), "Expected a log of an evaluation at"),
    "empty folder": (lambda t: (t, t), "holds no log of an evaluation"),
    "no samples": (
        lambda t: (written(t / "b.json", evaluation([])), t / "b.json"), "it holds no samples",
    ),
    "an epoch twice": (
        lambda t: (written(t / "b.json", evaluation([sample(1, "C")] * 2)), t / "b.json"),
        "sample 2 repeats q1",
    ),
    "no archive": (
        lambda t: (written_text(t / "b.eval", "x" * 400), t / "b.eval"),
        "cannot be read .*inspect log convert --to json",
    ),
    "cut archive": (
        lambda t: (bare(t / "b.eval"), t / "b.eval"), "has no header.json, so its run was",
    ),
}  # fmt: skip


def written_text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def bare(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("samples/1_epoch_1.json", json.dumps(sample(1, "C")))
    return path


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_pair_of_logs_ends_in_one_sentence(fault: str, tmp_path: Path):
    write, said = FAULTS[fault]
    with pytest.raises(wb.WorkbenchError, match=said):
        wb.forgetting.samples(*write(tmp_path))


def test_what_cannot_be_asked_ends_in_one_sentence(tmp_path: Path):
    ask = partial(wb.forgetting.samples, *pair(tmp_path, choices(BEFORE), choices(AFTER)))
    with pytest.raises(wb.WorkbenchError, match=r"found acc, acc_norm, not f1; give metric=NAME"):
        ask(metric="f1")
    with pytest.raises(wb.WorkbenchError, match=r"found 'genre'; they have answer, .*subject"):
        ask(by="genre")
    with pytest.raises(wb.WorkbenchError, match="Expected cluster to be a tag"):
        ask(cluster="genre")
    with pytest.raises(wb.WorkbenchError, match="Expected a plain name"):
        ask(name="")


def test_two_ways_to_type_it(tmp_path: Path):
    base, tuned = map(str, pair(tmp_path, choices(BEFORE), choices(AFTER)))
    done = workbench("forget", "samples", base, tuned, "--by", "subject")
    assert "tuned: items 0.67 to 0.50" in done.stdout
    assert "note: items: the score is acc" in done.stdout
    for words in (("--samples", base, tuned), (f"--samples={base}", tuned),
                  ("--by", "subject", "--samples", base, tuned)):  # fmt: skip
        more = () if "--by" in words else ("--by", "subject")
        assert workbench("forget", "retention", *words, *more).stdout == done.stdout
    assert workbench("forget", "samples", base, str(tmp_path / "no")).returncode == 2


def test_a_figure_of_it(tmp_path: Path):
    base = output(tmp_path / "base", {"a": choices(BEFORE), "b": choices(AFTER)})
    tuned = output(tmp_path / "tuned", {"a": choices(AFTER), "b": choices(AFTER)})
    found = wb.forgetting.samples(base, tuned)
    first, last = (ax for ax in found.plot().axes if ax.axison)
    assert [ax.get_title(loc="left") for ax in (first, last)] == ["a", "b"]
    shown = {
        round(float(one.get_xdata()[0]), 6) for one in first.lines if len(one.get_xdata()) == 1
    }
    # As they are, and less the two that guess right once.
    assert shown == {-0.25, round(2 / 24, 6), round(-4 / 24, 6), 0.0}
    assert "a 0.67 to 0.50" in figures.headline(found)

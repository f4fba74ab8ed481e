"""Every claim's line: what is read of planted rows, and on which side of the line it holds."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.figures.synthetic import result
from workbench.findings import CLAIMS
from workbench.findings.readings import Reading

R4: dict[str, Any] = {"r4": {"kind": "lora", "rank": 4, "seed": 0}}
FULL: dict[str, Any] = {"full": {"kind": "full", "seed": 0}}
HALF = 0.001  # of every planted interval: the lines below are found to twice that
ABOVE, ON, BELOW = 2 * HALF, 0.0, -2 * HALF
SIDES = [(ABOVE, True), (ON, None), (BELOW, False)]


def row(member: str, metric: str, value: float, half: float = HALF, **more: Any) -> dict:
    found = {"member": member, "metric": metric, "value": value, "n": 100, "baseline": 0.0}
    return found | {"low": value - half, "high": value + half} | more


def certain(member: str, metric: str, value: float, **more: Any) -> dict:
    """What has no width: a difference from it is as wide as the other side."""
    return row(member, metric, value, 0.0, **more)


def read(part: str, *results: Any) -> list[Reading]:
    """What the claim whose name has `part` reads."""
    (claim,) = [claim for claim in CLAIMS if part in claim.name]
    return list(claim.read(results))


def holds(part: str, *results: Any) -> bool | None:
    (one,) = read(part, *results)
    return one.holds


def retention(losses: dict[str, float], scores: dict[str, float], members: dict) -> Any:
    rows = [row(m, "loss_change", v, task="pretraining") for m, v in losses.items()]
    rows += [row(m, "score", v, task="boxes") for m, v in scores.items()]
    return result("forgetting.retention", rows, members, task="boxes")


@pytest.mark.parametrize(("by", "said"), SIDES)
def test_lora_forgets_more_where_it_learned_as_much(by: float, said: bool | None):
    members = R4 | FULL
    made = retention({"r4": 0.5 + 2 * by, "full": 0.5}, {"r4": 0.8, "full": 0.8}, members)
    (found,) = read("more than full", made)
    assert (found.value, found.holds) == (pytest.approx(2 * by), said)
    worse = retention({"r4": 0.5 + 2 * by, "full": 0.5}, {"r4": 0.6, "full": 0.8}, members)
    assert holds("more than full", worse) is None


def test_low_ranks_go_up_to_sixteen():
    members = {f"r{r}": {"kind": "lora", "rank": r} for r in (16, 17)} | FULL
    made = retention({"r16": 2.0, "r17": 2.0, "full": 1.0}, {}, members)
    assert [one.member for one in read("more than full", made)] == ["r16"]


@pytest.mark.parametrize(("by", "said"), SIDES)
def test_forgetting_by_rank_is_the_lowest_less_the_highest(by: float, said: bool | None):
    members = {f"r{r}": {"kind": "lora", "rank": r} for r in (64, 4, 16)}
    made = retention({"r4": 0.5 + 2 * by, "r16": 0.9, "r64": 0.5}, {}, members)
    (found,) = read("as its rank rises", made)
    assert (found.member, found.holds) == ("r4 less r64", said)
    assert found.value == pytest.approx(2 * by)
    one_rank = retention({"r4": 2.0, "again": 1.0}, {}, R4 | {"again": R4["r4"]})
    assert not read("as its rank rises", one_rank)
    # By hand: independent sides add in squares.
    assert found.high - found.value == pytest.approx(math.hypot(HALF, HALF))


def intruders(shares: dict[str, float], chance: float | None = 0.0) -> Any:
    """400 matrices of 10 vectors; every so many of them is an intruder."""
    drawn = {} if chance is None else {"intruder:same_spectrum:1": dict.fromkeys(shares, chance)}
    rows = [
        {"member": m, "layer": i, "component": "q", "rank": k, "metric": metric,
         "value": float(share > 0 and (10 * i + k) % round(1 / share) == 0)}
        for metric, own in ({"intruder": shares} | drawn).items()
        for m, share in own.items()
        for i in range(400)
        for k in range(10)
    ]  # fmt: skip
    return result("spectral.intruders", rows, R4 | FULL, k=10, eps=0.5)


@pytest.mark.parametrize(
    ("lora", "full", "said"),
    [(0.2, 0.004, True), (0.2, 0.01, None), (0.2, 0.02, False), (0.004, 0.002, False),
     (0.02, 0.0, True)],
)  # fmt: skip
def test_intruders_of_lora_where_full_fine_tuning_has_almost_none(lora, full, said):
    (found,) = read("intruder dimensions", intruders({"r4": lora, "full": full}))
    assert found.member == "r4"
    assert found.value == pytest.approx(lora)
    assert found.holds is said


@pytest.mark.parametrize(("chance", "said"), [(0.0, True), (0.2, None), (0.5, False), (None, None)])
def test_intruders_are_more_than_changes_in_random_directions_have(chance, said):
    (found,) = read("intruder dimensions", intruders({"r4": 0.2, "full": 0.0}, chance))
    assert found.holds is said
    assert found.control == pytest.approx(chance, nan_ok=True) if chance is not None else True


def test_matrices_are_the_items_of_intruders_and_not_their_vectors():
    """None of 4,000 vectors, but of 30 matrices, is no certain hundredth."""
    made = intruders({"r4": 0.2, "full": 0.0})
    few = result(
        "spectral.intruders", made.table[made.table["layer"] < 30].to_dict("records"), R4 | FULL,
        k=10, eps=0.5,
    )  # fmt: skip
    assert holds("intruder dimensions", few) is None


def scaled(loss: float, beside: float, score: float = 0.0, x: float = 0.7) -> list[dict]:
    return [
        row("r4", "loss_change", loss, arm="top", task="pretraining", x=x),
        certain("r4", "loss_change", beside, arm="neighbour", task="pretraining", x=x),
        row("r4", "score_change", score, arm="top", task="boxes", x=x),
        certain("r4", "score_change", 7.0, arm="neighbour", task="boxes", x=x),
        # Neither another task's loss nor the score of texts is what is asked.
        row("r4", "loss_change", 50.0, arm="top", task="boxes", x=x),
        row("r4", "score_change", 50.0, arm="top", task="pretraining", x=x),
        row("r4", "loss_change", 50.0, arm="random", task="pretraining", x=x),
    ]


def scaling(*rows: list[dict]) -> Any:
    return result("spectral.scale", [row for own in rows for row in own], R4)


@pytest.mark.parametrize(("by", "said"), [(BELOW, True), (ON, None), (ABOVE, False)])
def test_scaling_takes_forgetting_back_below_zero_and_the_control(by: float, said: bool | None):
    part = "reduces forgetting"
    (found,) = read(part, scaling(scaled(by, 1.0)))
    assert (found.value, found.control, found.holds) == (by, 1.0, said)
    assert holds(part, scaling(scaled(-3 + by, -3.0))) is said


@pytest.mark.parametrize(("by", "said"), SIDES)
def test_scaling_costs_up_to_five_in_a_hundred(by: float, said: bool | None):
    (found,) = read("hardly lowers", scaling(scaled(-3.0, -1.0, -5 + by)))
    assert (found.value, found.control, found.holds) == (-5 + by, 7.0, said)
    # Nothing is asked of what took no forgetting back.
    assert not read("hardly lowers", scaling(scaled(ON, 1.0, -5 + by)))


def test_the_scale_is_the_nearest_to_the_papers():
    rows = [scaled(float(-i), 1.0, x=x) for i, x in enumerate((0.5, 0.6, 0.75, 0.9), start=1)]
    (found,) = read("reduces forgetting", scaling(*rows))
    assert (found.value, found.at) == (-3.0, "scale 0.75")
    assert not read("reduces forgetting", scaling(scaled(-1.0, 1.0, x=0.45)))


def aucs(ours: float, outputs: float, groups: tuple[str, ...] = ("boxes", "plain", "facts")) -> Any:
    rows = [
        row("r4", metric, value, group=f"{groups[0]} > {group}")
        for group in groups[1:]
        for metric, value in (
            ("auc_matched:tuco", ours),
            ("auc_matched:output_co", outputs),
            ("auc:tuco", 0.9),
            ("auc_difference_matched:tuco-output_co", ours - outputs),
            ("auc:output_co", 0.1),
        )
    ]
    return result("tuco.contribution", rows, R4, prompts=dict.fromkeys(groups))


@pytest.mark.parametrize(("by", "said"), SIDES)
def test_tuco_tells_prompts_apart(by: float, said: bool | None):
    (found,) = read("like the fine-tuning data", aucs(0.5 + by, 0.1))
    assert (found.value, found.control, found.holds) == (0.5 + by, 0.1, said)
    assert found.at == "over plain"
    (found,) = read("than the models' outputs do", aucs(0.8 + 2 * by, 0.8))
    assert (found.value, found.holds) == (pytest.approx(2 * by), said)
    # Without texts like pre-training the second group stands for them.
    (found,) = read("than the models' outputs do", aucs(0.9, 0.1, ("boxes", "facts", "jobs")))
    assert found.at == "over facts"


@pytest.mark.parametrize("part", ["like the fine-tuning data", "than the models' outputs do"])
def test_groups_without_matching_prompts_decide_nothing(part: str):
    """However far the groups are apart, and whatever all of their prompts say."""
    made = aucs(0.9, 0.1)
    for n, said in ((8, True), (7, None), (0, None)):
        matched = made.table["metric"].str.contains("matched")
        table = made.table.assign(n=made.table["n"].mask(matched, n))
        if not n:
            table.loc[matched, ["value", "low", "high"]] = math.nan
        (found,) = read(part, result(made.analysis, table.to_dict("records"), R4,
                                     **made.provenance.parameters))  # fmt: skip
        assert (found.n, found.holds) == (n, said)
        if said is None:
            assert found.at == f"over plain, confounded: {n} pairs match"
    # Results without matched pairs say nothing.
    rows = [row for row in made.table.to_dict("records") if "matched" not in row["metric"]]
    assert not read(part, result(made.analysis, rows, R4, **made.provenance.parameters))


def test_pairs_that_all_agree_are_a_proportion_of_few():
    """Ten of ten: Wilson's interval begins at 10 / (10 + z^2)."""
    rows = [
        certain("r4", name, 1.0, group="boxes > plain") | {"n": 10}
        for name in ("auc_matched:tuco", "auc_matched:output_co")
    ]
    made = result("tuco.contribution", rows, R4, prompts=dict.fromkeys(("boxes", "plain")))
    (found,) = read("like the fine-tuning data", made)
    assert found.low == pytest.approx(10 / (10 + 1.959964**2), abs=1e-6)
    assert found.holds is True


def alphas(
    gain: float, x: float, tuned: float = 0.9, half: float = HALF, other: float | None = None
) -> Any:
    rows = [row("r4", "score", tuned, x=1.0), row("r4", "score", 1.0, x=1.1)]
    if other is not None:
        rows += [certain("r4", "score_change", 0.0, x=1.0), row("r4", "score_change", -0.3, x=0.0)]
        rows.append(row("r4", "score_change", other, x=1.1))
    return result("tuco.scaling", [*rows, row("r4", "gain_score", gain, half, x=x)], R4)


@pytest.mark.parametrize(("by", "said"), SIDES)
def test_another_scale_is_better(by: float, said: bool | None):
    part = "other scale"
    (found,) = read(part, alphas(by, 1.1))
    assert (found.value, found.control, found.holds) == (by, 0.0, said)
    # That the prompts chose alpha = 1 is evidence where no other scale can be better.
    assert holds(part, alphas(by, 1.0)) is None
    assert holds(part, alphas(0.0, 1.0, half=0.0, other=0.05 + by)) is (
        False if by == BELOW else None
    )
    # Of 0.04 that is left nobody can gain 0.05.
    assert holds(part, alphas(0.0, 1.0, 0.96, half=0.0, other=0.0)) is None
    assert holds(part, alphas(by, 1.1, half=0.0)) is None
    assert not read(part, alphas(by, 1.1, tuned=1.0))
    alone = result("tuco.scaling", [row("r4", "gain_score", by, x=1.1)], R4)
    assert holds(part, alone) is said


def grafts(*rows: dict) -> Any:
    own = [{"own": True} | row for row in rows]
    other = row("r4", "gain", 0.123, arm="learned", sparsity=0.01, own=False)
    return result("skills.localize", [other, *own], R4)


@pytest.mark.parametrize(("by", "said"), SIDES)
def test_sparse_grafts_carry_ninety_five_in_a_hundred(by: float, said: bool | None):
    def gain(value: float, sparsity: float, arm: str = "learned") -> dict:
        return row("r4", "gain", value, arm=arm, sparsity=sparsity)

    small, large = gain(0.1, 0.001), gain(1.0, 0.03)
    made = grafts(small, gain(0.95 + by, 0.01), large, gain(0.2, 0.01, "random"),
                  gain(0.3, 0.01, "movement"), gain(0.4, 0.001, "random"))  # fmt: skip
    (found,) = read("very few parameters", made)
    assert (found.value, found.control, found.holds) == (0.95 + by, 0.2, said)
    (found,) = read("very few parameters", grafts(gain(0.95 + by, 0.01, "movement")))
    assert found.holds is said
    assert math.isnan(found.control)
    assert not read("very few parameters", grafts(large))


@pytest.mark.parametrize(("by", "said"), SIDES)
def test_learned_masks_beat_movement(by: float, said: bool | None):
    made = grafts(
        row("r4", "gain", 0.6 + 2 * by, arm="learned", sparsity=0.1),
        row("r4", "gain", 0.6, arm="movement", sparsity=0.1),
        row("r4", "gain", 0.0, arm="movement", sparsity=0.3),
    )
    (found,) = read("Learned masks", made)
    assert (found.value, found.holds) == (pytest.approx(2 * by), said)


@pytest.mark.parametrize(("by", "said"), [(BELOW, True), (ON, None), (ABOVE, False)])
def test_grafts_are_better_calibrated(by: float, said: bool | None):
    """(graft's error - its null) - (the member's - its null), of the largest graft."""
    made = grafts(
        row("r4", "ece", 0.30 + 2 * by, arm="learned", sparsity=0.1, baseline=0.05),
        row("r4", "ece", 0.9, arm="learned", sparsity=0.01, baseline=0.0),
        row("r4", "ece", 0.9, arm="movement", sparsity=0.3, baseline=0.0),
        row("r4", "ece", 0.27, arm="tuned", sparsity=1.0, baseline=0.02),
    )
    (found,) = read("better calibrated", made)
    assert (found.value, found.holds, found.at) == (pytest.approx(2 * by), said, "10.00%")


def circuits(by: float, keep: str = "position") -> Any:
    def one(value: float, arm: str, **more: Any) -> dict:
        about = {"arm": arm, "side": "tuned", "circuit": "base"}
        return certain("r4", "faithfulness:score", value) | about | more

    rows = [
        row("r4", "faithfulness:score", 0.4 + by, arm="patch", side="tuned", circuit="base"),
        one(0.4, "random"), one(0.9, "patch", side="base"), one(0.9, "patch", circuit="tuned"),
        one(0.9, "patch", metric="faithfulness:logit_difference"),
    ]  # fmt: skip
    return result("patching.circuit", rows, R4, keep=keep)


@pytest.mark.parametrize(("by", "said"), SIDES)
def test_the_bases_circuit_is_used(by: float, said: bool | None):
    (found,) = read("base's own circuit", circuits(by))
    assert (found.value, found.control, found.holds) == (0.4 + by, 0.4, said)
    assert not read("base's own circuit", circuits(by, keep="everywhere"))


def crossed(*rows: dict) -> Any:
    about = {"direction": "tuned->base", "component": "group", "metric": RECOVERED, "group": None}
    return result("patching.cross_model", [about | row for row in rows], R4)


RECOVERED = "recovered:logit_difference"


@pytest.mark.parametrize(("by", "said"), SIDES)
def test_circuits_carry_the_gain(by: float, said: bool | None):
    def one(value: float, arm: str = "patch", half: float = HALF) -> dict:
        return row("r4", RECOVERED, value, half, arm=arm, group="whole circuit")

    others = {"group": "value fetcher"}, {"direction": "base->tuned"}, {"metric": "score"}
    made = crossed(*(one(0.99) | other for other in others), one(0.5 + by), one(0.5, "random", 0.0))
    (found,) = read("circuit carries the gain into", made)
    assert (found.value, found.control, found.holds) == (0.5 + by, 0.5, said)
    assert holds("all of the gain", crossed(one(0.9 + by), one(0.5, "random", 0.0))) is said


def best_place(component: str, metric: str, values: dict[str, float], **more: Any) -> list[dict]:
    """A best layer, the second of three, with what it has beyond its controls."""
    about = {"component": component, **more}
    return [
        row("r4", metric, 0.9, arm="patch", layer=layer, **about) for layer in range(3)
    ] + [
        row("r4", f"{name}{metric}", value, arm="best", layer=1, baseline=0.25, **about)
        for name, value in values.items()
    ]  # fmt: skip


@pytest.mark.parametrize(("by", "said"), SIDES)
def test_some_layers_attention_carries_the_gain(by: float, said: bool | None):
    part = "Some layer's attention"

    def one(own: float, beyond: float, **more: Any) -> list[dict]:
        values = {"": own, "beyond_random:": beyond, "beyond_shuffled:": 0.9}
        return best_place("attn_out", RECOVERED, values, **more)

    others = one(0.9, 0.9, direction="base->tuned") + best_place("mlp_out", RECOVERED, {"": 0.9})
    for own, beyond in ((0.5, by), (by, 0.5)):
        (found,) = read(part, crossed(*one(own, beyond), *others))
        assert (found.value, found.control, found.holds) == (own, 0.25, said)
        assert found.at == "layer 1 of 3"
    # What was chosen and reported on the same prompts says nothing; nor does an undefined share.
    assert not read(part, crossed(*one(0.9, 0.9)[:3]))
    assert not read(part, crossed(*one(math.nan, math.nan)))


def unlearned(krs: float, beyond: float, destination: float = 0.49) -> Any:
    def one(metric: str, value: float, arm: str, **more: Any) -> dict:
        about = {"component": "mlp_hidden", "direction": "base->tuned"}
        return row("r4", metric, value, arm=arm, **(about | more))

    values = {"": krs, "beyond_random:": 0.9, "beyond_shuffled:": beyond}
    rows = [
        one("score", 1.0, "source"), one("score", destination, "destination"),
        *best_place("mlp_hidden", "krs", values, direction="base->tuned"),
        *best_place("attn_out", "krs", dict.fromkeys(values, 0.99), direction="base->tuned"),
        *best_place("mlp_hidden", "krs", dict.fromkeys(values, 0.99), direction="tuned->base"),
    ]  # fmt: skip
    return result("patching.cross_model", rows, R4)


@pytest.mark.parametrize(("by", "said"), SIDES)
def test_what_was_unlearned_comes_back(by: float, said: bool | None):
    (found,) = read("MLP activations", unlearned(0.7 + by, 0.6))
    assert (found.value, found.holds) == (0.7 + by, said)
    assert found.control == pytest.approx(0.1 + by)
    assert found.at == "layer 1 of 3"
    (found,) = read("specific to the unlearned", unlearned(0.8, 0.1 + by))
    assert (found.value, found.holds) == (0.1 + by, said)
    assert not read("MLP activations", unlearned(0.9, 0.1, destination=0.5))


def test_verdicts_of_what_is_not_kept():
    says = {"a": "SUPPRESSED", "b": "ERASED", "c": "MIXED", "d": "KEPT"}
    rows = [{"member": "r4", "task": t, "metric": "verdict", "reading": v} for t, v in says.items()]
    rows += [row("r4", "score", 0.3, arm="output", task=task) for task in "ab"]
    rows += [row("r4", "probe", 0.8, arm="probe", task="a")]
    found = read("hidden, not erased", result("forgetting.verdict", rows, R4))
    assert [(one.member, one.holds) for one in found] == [
        ("r4, a", True), ("r4, b", False), ("r4, c", None),
    ]  # fmt: skip
    assert [one.value for one in found[:2]] == [0.3, 0.3]
    assert math.isnan(found[2].value)
    assert {one.control for one in found} == {1.0}


BACK = [
    ("few steps", "forgetting.revive", "savings_share_lost", "regained_share",
     {"control": "relabelled"}, {"control": "never had it"}),
    ("Conjugate", "forgetting.conjugate", "recovery_lost", "recovery_net",
     {"arm": "best"}, {"arm": "pig"}),
]  # fmt: skip


@pytest.mark.parametrize(("part", "analysis", "lost", "net", "about", "other"), BACK)
@pytest.mark.parametrize(
    ("of_lost", "value", "said"),
    [
        (0.9, 0.5 + ABOVE, True),
        (0.9, 0.5 + ON, None),
        (0.9, 0.5 + BELOW, None),
        (0.5 + ON, 0.1, None),
        (0.5 + BELOW, 0.1, False),
    ],
)
def test_half_of_the_loss_comes_back_net(part, analysis, lost, net, about, other, of_lost, value,
                                         said):  # fmt: skip
    """The lost answers alone can only show that fewer than half came back."""
    rows = [
        row("r4", lost, of_lost, task="facts", **about) | {"n": 10},
        row("r4", net, value, task="facts", **about),
        row("r4", "regained", 0.3, task="facts", **about),
        row("r4", lost, 0.9, task="jobs", **about) | {"n": 7},
        row("r4", net, 0.9, task="jobs", **about),
        row("r4", lost, 0.9, task="facts", **other),
        row("r4", net, 0.9, task="facts", **other),
    ]
    (found,) = read(part, result(analysis, rows, R4))
    assert (found.member, found.value, found.control) == ("r4, facts", value, 0.0)
    assert found.holds is said
    # Results that count the lost answers alone say nothing.
    assert not read(part, result(analysis, [rows[0], *rows[2:4]], R4))


def test_conjugates_must_be_better_in_all():
    for more, said in ((ABOVE, True), (ON, None), (BELOW, None)):
        rows = [
            row("r4", metric, value, task="facts", arm="best")
            for metric, value in (("recovery_lost", 0.9), ("recovery_net", 0.9), ("regained", more))
        ]
        assert holds("Conjugate", result("forgetting.conjugate", rows, R4)) is said


def pruned(ours: float, null: float, recovered: float = 0.5) -> Any:
    rows = [
        row("r4", "recovered", recovered, arm="best ranked", task="facts"),
        row("r4", "regained", ours, arm="best ranked", task="facts"),
        certain("r4", "regained", null, arm="best random", task="facts"),
        row("r4", "regained", 0.9, arm="layer 3", task="facts"),
    ]
    return result("forgetting.prune", rows, R4)


@pytest.mark.parametrize(("by", "said"), SIDES)
def test_pruning_lets_the_old_task_rise(by: float, said: bool | None):
    part = "Pruning"
    for ours, null in ((by, -1.0), (0.3 + by, 0.3)):
        (found,) = read(part, pruned(ours, null))
        assert (found.value, found.control, found.holds) == (ours, null, said)
    assert not read(part, pruned(0.3, 0.0, recovered=math.nan))
    rows = pruned(0.3, 0.0).table
    for gone in ("best ranked", "best random"):
        some = rows[(rows["arm"] != gone) | (rows["metric"] == "recovered")].to_dict("records")
        assert not read(part, result("forgetting.prune", some, R4))


LOST = -0.05  # of a score: more would matter


@pytest.mark.parametrize(
    ("cost", "rise", "said"),
    [
        (LOST + ABOVE, ABOVE, True),
        (0.5, ABOVE, True),
        (LOST + ON, ABOVE, None),
        (LOST + BELOW, ABOVE, False),
        (0.0, ON, None),
        (0.0, BELOW, False),
    ],
)
def test_a_point_between_keeps_both(cost: float, rise: float, said: bool | None):
    def one(task: str, value: float, **more: Any) -> dict:
        return row("r4", "score_change", value, arm="best", task=task, x=0.6) | more

    rows = [
        one("boxes", cost, own=True), one("facts", 0.3, own=False), one("jobs", 0.5, own=False),
        one("facts", rise, own=False, arm="best other"), one("facts", 0.9, own=False, arm="half"),
    ]  # fmt: skip
    (found,) = read("WiSE-FT", result("forgetting.interpolate", rows, R4))
    assert (found.value, found.control, found.holds) == (rise, cost, said)
    assert found.at == "facts, best of 2, at 0.6"
    # Results that chose the task where they report it say nothing, nor does one without a cost.
    for some in (rows[:3], rows[1:]):
        assert not read("WiSE-FT", result("forgetting.interpolate", some, R4))


def test_no_loss_among_few_prompts_is_no_certain_nought():
    """Of n prompts none lost: by Wilson's interval up to z^2 / (n + z^2) may be."""
    for n, said in ((50, None), (72, None), (74, True)):
        rows = [
            certain("r4", "score_change", 0.0, arm="best", task="boxes", own=True) | {"n": n},
            row("r4", "score_change", 0.5, arm="best other", task="facts", own=False, x=0.6),
        ]
        assert (1.959964**2 / (n + 1.959964**2) < 0.05) is (said is True)
        assert holds("WiSE-FT", result("forgetting.interpolate", rows, R4)) is said


def repaired(member: str, kept: float, **beyond: float) -> Any:
    """A repair of one model. kept: by how much the chosen edits surely lower the score at most;
    beyond: the loss of an arm less the chosen alpha's, which gives back .25."""
    rows = []
    for arm, more in {"alpha": 0.0, **beyond}.items():
        told = {"arm": arm, "x": 0.75, "own": False, "task": "pretraining"}
        rows.append(row(member, "chosen_loss_change", more - 0.25, **told))
        rows.append(row(member, "chosen_regained", 0.5, **told))
        if arm != "alpha":
            rows.append(row(member, "chosen_loss_beyond", more, **told))
        score = {"low": -kept, "high": 0.02}
        rows.append(row(member, "chosen_score_change", 0.0, **told) | score
                    | {"own": True, "task": "boxes"})  # fmt: skip
    return result("edits.repair", rows, R4 | FULL)


@pytest.mark.parametrize(("by", "said"), SIDES)
@pytest.mark.parametrize(
    ("part", "arm"),
    [
        ("Scaling the intruders down", "intruders"), ("moved most", "movement"),
        ("entries that harm", "harmful"), ("directions that harm", "reweighted"),
    ],
)  # fmt: skip
def test_a_repair_is_held_against_a_smaller_change(
    part: str, arm: str, by: float, said: bool | None
):
    (found,) = read(part, repaired("r4", 0.04, **{arm: -by}))
    assert (found.value, found.holds) == (pytest.approx(by), said)
    assert (found.control, found.at) == (0.25, "strength 0.75")
    assert holds(part, repaired("r4", 0.06, **{arm: -by})) is None  # the score may fall
    assert not read(part, repaired("r4", 0.04))


def test_a_smaller_change_gives_back_at_no_cost():
    (found,) = read("A smaller change", repaired("r4", 0.04))
    assert (found.value, found.holds) == (0.5, True)
    assert holds("A smaller change", repaired("r4", 0.06)) is None
    nothing = repaired("r4", 0.04, intruders=-0.1)
    nothing.table.loc[nothing.table["metric"] == "chosen_regained", "value"] = math.nan
    assert not read("A smaller change", nothing)  # nothing was lost
    assert not read("Scaling the intruders down", nothing)

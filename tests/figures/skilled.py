"""Synthetic Results of the skills with a known truth: base 0.2, tuned 0.9 on every task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations, permutations

import numpy as np

from tests.figures.synthetic import COMPONENTS, LAYERS, TASK, result
from workbench.results.result import Result

BASE, TUNED, N = 0.2, 0.9, 40
SPARSITIES = (0.001, 0.01, 0.1)
NEEDED = {"learned": 0.01, "movement": 0.1, "rank": 0.1, "random": 1.0, "gradient": 0.2}
SHARES = (0.1, 0.2, 0.4, 0.8)
# What is left of the gain where a share q is set back, and the largest of SHARES that costs nothing
LEFT: dict[str, Callable[[float], float]] = {
    "movement": lambda q: (1 - q) ** 8,
    "relative": lambda q: (1 - q) ** 4,
    "smallest": lambda q: 1 - q**4,
    "random": lambda q: 1 - q,
}
FREE = {"movement": 0.0, "relative": 0.0, "smallest": 0.4, "random": 0.0}
RANKS = (1, 2, 4, 8)
TIERED, ONE_BIT, ADAPTER, DENSE = 0.4, 1.0, 2.0, 15.5  # bits an entry
PATH = ((1, "self_attn.q_proj"), (0, "mlp.up_proj"), (3, "self_attn.v_proj"))
NEEDED_BLOCK, OFF, ALONE = PATH[0], -0.5, 0.3
BINS = ((0.25, 4), (0.55, 10), (0.95, 26))  # mean confidence, prompts


def level(gain: float | np.ndarray) -> float | np.ndarray:
    """The score at a share of the gain."""
    return BASE + gain * (TUNED - BASE)


def measured(gain: float, **about) -> list[dict]:
    """As `Readout.rows` gives: a share `gain` of what separates base and tuned model."""
    values = {
        "score": (BASE + gain * (TUNED - BASE), 0.05, BASE),
        "gain": (gain, 0.08, 0.0),
        "agreement": (BASE + gain * (1 - BASE), 0.05, BASE),
        "log_probability": (-3 + 2.5 * gain, 0.2, -3.0),
        "ece": (0.5 - 0.4 * gain, 0.03, 0.06),
    }
    told = {"task": TASK, "own": True} | about
    return [
        told | {"metric": metric, "value": value, "low": value - half, "high": value + half}
        | {"n": N, "baseline": baseline}
        for metric, (value, half, baseline) in values.items()
    ]  # fmt: skip


def ends(**tuned) -> list[dict]:
    return measured(0, arm="base", x=0.0) + measured(1, arm="tuned", **{"x": 1.0} | tuned)


def of_every(members: dict, rows: list[dict]) -> list[dict]:
    return [{"member": member} | row for member in members for row in rows]


def localize(members: dict) -> Result:
    """The gain is whole where an arm has the share it needs; the graft is all in layer 2."""
    rows = [*ends(), {"metric": "N", "value": 1e6}, {"metric": "moved", "value": 1.0}]
    for arm, needed in NEEDED.items():
        for s in SPARSITIES:
            gain, about = min(1, s / needed), {"arm": arm, "sparsity": s}
            rows += measured(gain, x=s, **about)
            rows.append(about | {"metric": "choosing_gain", "value": gain, "n": N // 2})
    for layer in range(LAYERS):
        rows += measured(0.3 * (layer == 2), arm="layer", x=1 / LAYERS, layer=layer)
    for arm in ("learned", "movement"):
        for s in SPARSITIES:
            for layer in range(LAYERS):
                rows += [
                    {"arm": arm, "sparsity": s, "layer": layer, "component": component, "n": 100}
                    | {"metric": "entries", "value": s * LAYERS * (layer == 2), "baseline": s}
                    for component in COMPONENTS
                ]
    return result("skills.localize", of_every(members, rows), members)


def overlap(members: dict) -> Result:
    """Two grafts of every member; those of one task share half, others what chance gives."""
    grafts = [f"{member}, {task}" for member in members for task in (TASK, "facts")]
    rows = []
    for first, second in permutations(grafts, 2):
        same = first.split(", ")[1] == second.split(", ")[1]
        pair = {"first": first, "second": second, "x": 0.01, "baseline": 0.01, "n": 1000}
        found = {"value": 0.5 if same else 0.01, "null_low": 0.005, "null_high": 0.016}
        rows.append(pair | {"metric": "overlap"} | found)
        rows.append(pair | {"metric": "within", "value": 0.05})
        rows.append(pair | {"metric": "places", "value": 0.8, "low": 0.6, "high": 0.9})
    return result("skills.overlap", rows, members)


def compose(members: dict) -> Result:
    """A graft gives its own task 0.9; together each loses 0.1. Random entries give nothing."""
    tasks = (TASK, "facts")
    rows = [{"arm": "base", "skills": "none", "task": task, "metric": "score", "value": BASE}
            for task in tasks]  # fmt: skip
    for size in (1, 2):
        for chosen in combinations(tasks, size):
            told = {"skills": " + ".join(chosen), "n": N}
            for arm, gained in (("graft", 0.7), ("random", 0.0), ("whole", 0.75)):
                for task in tasks:
                    lost = 0.1 * (size - 1) if arm == "graft" else 0.0
                    value = BASE + (gained - lost) * (task in chosen)
                    rows.append(told | {"arm": arm, "task": task, "metric": "score",
                                        "value": value})  # fmt: skip
            rows += [
                told | {"arm": "graft", "task": task, "metric": "interference", "value": -0.1,
                        "low": -0.15, "high": -0.05, "baseline": 0.9}
                for task in chosen if size > 1
            ]  # fmt: skip
    rows = [{"member": " + ".join(members)} | row for row in rows]
    return result("skills.compose", rows, members)


def restore(members: dict) -> Result:
    """What is left follows LEFT; of the smallest 40% cost nothing, and setting them back helps."""
    rows = measured(1, arm="tuned", x=0.0) + measured(0, arm="outside", x=1.0)
    rows += measured(0, arm="base", x=1.0)
    for arm, left in LEFT.items():
        for q in SHARES:
            rows += measured(left(q), arm=arm, x=q)
        about = {"arm": arm, "task": TASK, "own": True, "n": N // 2}
        free = {"value": FREE[arm], "low": FREE[arm], "high": 2 * FREE[arm]}
        paid = {"value": -0.01, "low": -0.03, "high": 0.01}
        helped = {"value": 0.04, "low": 0.01 if arm == "smallest" else -0.01, "high": 0.07}
        rows.append(about | free | {"metric": "free"})
        rows.append(about | paid | {"metric": "cost", "x": FREE[arm]})
        rows.append(about | helped | {"metric": "harmful", "x": 0.4})
        if arm == "smallest":
            best = {"arm": "best", "chosen": arm, "metric": "harmful", "x": 0.4}
            rows.append(about | helped | best)
    sizes = {"N": 1e6, "moved": 0.999}
    rows += [{"metric": k, "value": v, "own": True} for k, v in sizes.items()]
    return result("skills.restore", of_every(members, rows), members)


def compression(members: dict) -> Result:
    """Rank 4 is enough, in half a bit an entry; a LoRA has its own file besides."""
    rows = []
    for member, about in members.items():
        own = measured(0, arm="base", x=0.0) + measured(1, arm="tuned", x=DENSE)
        for rank in RANKS:
            own += measured(min(1, rank / 4), arm="rank", rank=rank, x=rank / 8)
        own += measured(0.98, arm="tiered", x=TIERED) + measured(0.4, arm="1-bit", x=ONE_BIT)
        if about["kind"] == "lora":
            own += measured(1, arm="adapter", x=ADAPTER)
        for arm, gain in (("movement", 0.5), ("principal", 0.1), ("random", 0.0)):
            for s in SPARSITIES:
                own += measured(gain * s / 0.1, arm=arm, sparsity=s, x=20 * s)
        for share in (0.5, 0.8):
            own += measured(share, arm="whole", sparsity=share, x=16 * share)
            area = {"metric": "auroc", "value": share, "low": 0.4, "high": 0.9, "n": 2 * N}
            about_it = {"arm": "whole", "sparsity": share, "task": "facts", "own": False}
            own.append(about_it | area | {"baseline": 0.6})
        rows += [{"member": member} | row for row in own]
    return result("skills.compression", rows, members)


def calibration(members: dict, grafts: tuple[str, ...] = ("learned 1%",)) -> Result:
    """The base is as often right as the square of its confidence, every other arm as sure as it
    is right."""
    rows = []
    for arm in ("base", "tuned", *grafts):
        told = {"arm": arm, "task": TASK, "own": True}
        for metric in ("ece", "ece_mass"):
            found = {"value": 0.3 if arm == "base" else 0.05, "low": 0.03, "high": 0.35}
            null = {"baseline": 0.06, "null_low": 0.02, "null_high": 0.11}
            rows.append(told | {"metric": metric, "n": N} | found | null)
        for binning in ("width", "mass"):
            for place, (x, n) in enumerate(BINS):
                value = x**2 if arm == "base" else x
                about = {"metric": "reliability", "binning": binning, "bin": place, "x": x, "n": n}
                edges = {"low": max(0, value - 0.2), "high": min(1, value + 0.2)}
                rows.append(told | about | edges | {"value": value})
    return result("skills.calibration", of_every(members, rows), members)


def blocks(members: dict) -> Result:
    """One matrix is needed and helps alone; the greedy path takes PATH, a third of the gain each.
    The embedding changed too, so that every matrix together gives less than the tuned model."""
    total = LAYERS * len(COMPONENTS)
    rows = measured(0, arm="base", x=0) + measured(1, arm="tuned", x=total)
    rows += measured(0.95, arm="all", x=total)
    for layer in range(LAYERS):
        for component in COMPONENTS:
            needed = (layer, component) == NEEDED_BLOCK
            rows += single(layer, component, "off", OFF if needed else 0.0)
            rows += single(layer, component, "alone", ALONE if needed else 0.0)
            rows += edited(layer, component, ALONE if needed else 0.0)
    for x, (layer, component) in enumerate(PATH, start=1):
        place = {"layer": layer, "component": component}
        rows += measured(x / 3, arm="greedy", x=x, **place)
        rows += measured(x / 30, arm="random", x=x)
    return result("skills.blocks", of_every(members, rows), members)


def single(layer: int, component: str, arm: str, value: float) -> Iterator[dict]:
    for metric in ("score_change", "log_probability_change"):
        yield {
            "arm": arm, "layer": layer, "component": component, "task": TASK, "own": True,
            "metric": metric, "value": value, "low": value - 0.1, "high": value + 0.1, "n": N,
            "baseline": 0.0,
        }  # fmt: skip


def edited(layer: int, component: str, value: float) -> Iterator[dict]:
    for metric, share, own in (
        ("efficacy", value, True), ("generality", value / 2, False), ("locality", 1 - value, False),
    ):  # fmt: skip
        yield {
            "arm": "alone", "layer": layer, "component": component, "own": own, "metric": metric,
            "task": metric, "value": share, "low": share - 0.1, "high": share + 0.1, "n": N,
            "baseline": 0.0,
        }  # fmt: skip


def repair(members: dict) -> Result:
    """The entries that moved most, alone, give all of the loss back; a smaller change half."""
    ends = (("tuned", None, 1.0), ("base", None, 0.0))
    curves = [(arm, x, x) for arm in ("alpha", "movement") for x in (0.5, 0.75, 1.0)]
    rows = []
    for arm, x, gain in (*ends, *curves):
        score = 1.0 if arm == "movement" else gain
        told = {"arm": arm, "x": x, "n": N}
        rows += [
            told | {"task": TASK, "own": True, "metric": "score", "value": BASE + score * 0.7},
            told | {"task": "pretraining", "own": False, "metric": "loss", "value": 2 + gain},
        ]
    for arm, x, moved in (("alpha", 1.0, 0.0), ("movement", 0.5, -0.5)):
        found = {"value": moved, "low": moved - 0.1 * (moved < 0), "high": moved / 2, "n": N // 2}
        told = {"arm": arm, "x": x, "task": "pretraining", "own": False}
        rows.append(told | found | {"metric": "chosen_loss_change"})
        kept = {"task": TASK, "own": True, "value": 0.0, "low": -0.04, "high": 0.04, "n": N // 2}
        rows.append(told | kept | {"metric": "chosen_score_change"})
        rows.append(told | {"metric": "recommended", "value": float(moved < 0)})
    return result("edits.repair", of_every(members, rows), members)


def alignment(members: dict) -> Result:
    """Layer by layer nearer to the gradient; the largest entries are those of the gradient."""
    rows = []
    null = {"baseline": 0.5, "null_low": 0.49, "null_high": 0.51}
    for layer in range(LAYERS):
        for component in COMPONENTS:
            place = {"layer": layer, "component": component}
            for metric, value in (("sign_agreement", 0.5 + 0.05 * layer), ("cosine", 0.2)):
                rows.append(place | {"metric": metric, "value": value} | null)
            for arm, value in (("gradient", 0.4), ("principal", 0.1), ("magnitude", 0.05)):
                share = {"metric": "overlap", "value": value, "n": 100} | null
                rows.append(place | {"arm": arm} | share | {"baseline": 0.05})
        rank = {"task": "facts", "value": -0.2, "low": -0.3, "high": -0.1, "n": 64}
        random = {"baseline": 0.0, "null_low": -0.12, "null_high": 0.12}
        rows.append({"layer": layer, "metric": "relevance"} | rank | random)
    for metric in ("sign_agreement", "cosine"):
        rows.append({"metric": metric, "value": 0.6} | null)
    return result("skills.alignment", of_every(members, rows), members)


def skills(members: dict) -> list[Result]:
    """One Result of every analysis of skills, and of edits."""
    makers = (
        *(localize, alignment, overlap, compose, restore, compression, calibration),
        *(blocks, repair),
    )
    return [make(members) for make in makers]

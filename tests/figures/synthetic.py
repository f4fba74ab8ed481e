"""Synthetic Results with a known truth: what every figure and the report are tested on."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from workbench.forgetting import paired
from workbench.forgetting.paired import Paired
from workbench.results.result import Provenance, Result

COMPONENTS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
LAYERS, K, SIZE, TASK = 6, 10, 64, "boxes"
LAMBDAS = (0, 0.1, 0.25, 0.5, 0.7, 0.9, 1, 1.5, 2)


def family(count: int = 5) -> dict[str, dict]:
    """`count` members: LoRA of rising rank, the last one full (a LoRA where there is but one)."""
    ranks = (1, 2, 8, 16, 32, 64, 128)[: max(count - 1, 1)]
    members = {
        f"lora-r{rank}": {
            "kind": "lora",
            "rank": rank,
            "alpha": 2 * rank,
            "seed": 0,
            "reference": f"runs/lora-r{rank}",
            "fingerprint": f"{rank:016x}",
        }
        for rank in ranks
    }
    full = {"kind": "full", "seed": 0, "reference": "runs/full", "fingerprint": "f" * 16}
    return members | ({"full": full} if count > 1 else {})


def stepped(steps: tuple[int, ...] = (25, 50, 100, 200, 400)) -> dict[str, dict]:
    """One run of rank 8 at several training steps."""
    about = {"kind": "lora", "rank": 8, "alpha": 16, "seed": 0}
    return {f"r8@{step}": about | {"step": step, "fingerprint": f"s{step}"} for step in steps}


def result(analysis: str, rows: list, members: dict, tensors=None, **parameters) -> Result:
    """A Result of `rows` (dicts) over `members`."""
    provenance = Provenance(
        base={"reference": "models/base", "fingerprint": "b" * 16},
        members=members,
        parameters=parameters,
        seed=0,
        command=f"workbench {analysis} models/base --k {K}",
        versions={"python": "3.11", "workbench": "0.1.0"},
    )
    table = pd.DataFrame(rows)
    whole = [name for name in ("layer", "rank") if name in table]
    return Result(analysis, table.astype(dict.fromkeys(whole, "Int64")), provenance, tensors or {})


def strength(about: dict) -> float:
    """How far a member's vectors have turned: much at low rank and late, hardly when full."""
    return {"full": 0.02}.get(about["kind"], 0.6 / about.get("rank", 1) ** 0.4) * (
        about.get("step", 400) / 400
    )


def intruders(members: dict) -> Result:
    """Ten vectors per matrix; the share that turned away from the base is `strength`."""
    rng, others = np.random.default_rng(0), np.random.default_rng(2)
    rows = []
    for member, about in members.items():
        for layer in range(LAYERS):
            for component in COMPONENTS:
                turned = rng.random(K) < strength(about) * (layer + 1) / LAYERS
                cosine = np.where(turned, rng.uniform(0.1, 0.5, K), rng.beta(20, 2, K))
                values = {
                    "sigma": 8 * 0.85 ** np.arange(K),
                    "max_cosine": cosine,
                    "intruder": (cosine < 0.5).astype(float),
                    "participation_ratio": 1 / cosine**2,
                    "max_cosine:random_delta": rng.beta(30, 2, K),
                }
                if about["kind"] == "lora":
                    values["max_cosine:random_lowrank"] = rng.beta(8, 2, K)
                values |= {
                    f"max_cosine:same_spectrum:{draw}": others.beta(12, 2, K)
                    for draw in range(1, 4)
                }
                place = {"member": member, "layer": layer, "component": component}
                rows += [
                    place | {"rank": j, "metric": metric, "value": float(value)}
                    for metric, array in values.items()
                    for j, value in enumerate(array)
                ]
    return result("spectral.intruders", rows, members, k=K, eps=0.5, side="left")


def delta_spectrum(members: dict) -> Result:
    """A LoRA's spectrum stops at its rank; a full member's falls like a power."""
    rng = np.random.default_rng(1)
    rows = []
    for member, about in members.items():
        for layer in range(LAYERS):
            for component in COMPONENTS:
                kept = min(about.get("rank", SIZE), SIZE)
                sigma = np.sort(rng.uniform(0.5, 1, kept))[::-1] * np.arange(1, kept + 1) ** -0.3
                p = sigma / sigma.sum()
                place = {"member": member, "layer": layer, "component": component}
                scalars = {
                    "effective_rank": float(np.exp(-(p * np.log(p)).sum())),
                    "stable_rank": float((sigma**2).sum() / sigma[0] ** 2),
                    "norm": float(np.sqrt((sigma**2).sum())),
                    "relative_norm": float(np.sqrt((sigma**2).sum())) / 30,
                }
                rows += [
                    place | {"rank": None, "metric": m, "value": v} for m, v in scalars.items()
                ]
                rows += [
                    place | {"rank": j, "metric": "sigma", "value": float(v)}
                    for j, v in enumerate(sigma)
                ]
        rows.append(
            {"member": member, "layer": 0, "component": "norm", "metric": "norm", "value": 0.01}
        )
    return result("spectral.delta_spectrum", rows, members)


def similarity(members: dict, size: int = 200) -> Result:
    """Identity with neighbours mixed; the first `3` tuned vectors of a LoRA are new directions."""
    rng = np.random.default_rng(2)
    tensors, rows = {}, []
    for member, about in members.items():
        for component in COMPONENTS[:2]:
            array = np.abs(rng.normal(0, size**-0.5, (size, size))).astype("float32")
            array[np.arange(size), np.arange(size)] = 0.95
            if about["kind"] == "lora":
                array[:3] = np.abs(rng.normal(0, size**-0.5, (3, size)))
            name = f"2.{component}"
            tensors[f"{member}/{name}" if len(members) > 1 else name] = array
            rows += [
                {"member": member, "layer": 2, "component": component, "rank": j}
                | {"metric": "max_cosine", "value": float(array[j].max())}
                for j in range(size)
            ]
    return result("spectral.similarity", rows, members, tensors)


def explained(members: dict) -> Result:
    """Twice what random directions would do on the task, as they would on facts."""
    rows = []
    for member in members:
        for task, energy in ((TASK, 2.0), ("facts", 1.0)):
            about = {"member": member, "task": task}
            measured = {"n": 40, "baseline": 1.0, "null_low": 0.7, "null_high": 1.4}
            interval = {"value": energy, "low": 0.9 * energy, "high": 1.1 * energy}
            rows.append(about | {"metric": "energy"} | measured | interval)
            for layer in range(LAYERS):
                for component in COMPONENTS:
                    place = about | {"layer": layer, "component": component}
                    rows.append(place | {"metric": "energy"} | measured | interval)
                    for x in (1, 4, 16):
                        share = {"x": float(x), "value": 0.1 * x**0.5, "baseline": x / SIZE}
                        rows.append(place | share | {"metric": "explained"})
                        rows.append(place | share | {"metric": "inputs"})
    return result("spectral.explained", rows, members)


def directions(members: dict) -> Result:
    """Every direction does what first order says; controls do nothing."""
    rows = []
    for member in members:
        for layer in range(LAYERS):
            told = 0.1 * layer
            place = {"member": member, "layer": layer, "component": COMPONENTS[3], "rank": 0}
            null = {"baseline": 0.0, "null_low": -0.05, "null_high": 0.05}
            rows.append(place | {"metric": "sensitivity", "value": told} | null)
            word = {"side": "writes", "x": 1.0, "token": f" word{layer}", "value": 0.4}
            rows.append(place | {"metric": "word", "baseline": 0.2} | word)
            for arm, value in (("direction", told), ("neighbour", 0.0), ("random", 0.0)):
                spread = {"low": value - 0.02, "high": value + 0.02, "n": 20, "baseline": 0.0}
                rows.append(place | {"arm": arm, "metric": "loss_change", "value": value} | spread)
    return result("spectral.directions", rows, members)


def subspaces(members: dict) -> Result:
    """Every two models share half of their output directions, and as many input ones as chance."""
    rows = []
    names = list(members)
    for layer in range(LAYERS):
        for component in COMPONENTS:
            place = {"layer": layer, "component": component}
            for first, second in combinations(names, 2):
                about = place | {"first": first, "second": second}
                for side, value in (("input", 0.1), ("output", 0.5)):
                    null = {"baseline": 0.1, "null_low": 0.05, "null_high": 0.2}
                    rows.append(about | {"side": side, "metric": "overlap", "value": value} | null)
                rows.append(about | {"metric": "cosine", "value": 0.3, "baseline": 0.0})
            for first in names if len(names) > 1 else ():
                for side, value in (("input", 0.1), ("output", 0.4 + 0.05 * layer)):
                    share = {"metric": "replicated", "value": value, "baseline": 0.1}
                    rows.append(place | {"first": first, "side": side} | share)
    rows.append({"metric": "stock", "value": 0.6, "baseline": 0.0, "n": len(names)})
    return result("spectral.subspaces", rows, members)


def scale(members: dict) -> Result:
    """The top intruder costs pre-training loss in proportion to lambda; the controls only harm."""
    arms = {"top": (9, 2), "all": (14, 9), "neighbour": (-20, 25), "random": (-2, 3)}
    rows = []
    for member in members:
        for arm, (slope, harm) in (arms | {"shrink": (6, 18)}).items():
            for x in LAMBDAS:
                for task, metric, value in (
                    (TASK, "score_change", -harm * (x - 1) ** 2),
                    ("pretraining", "loss_change", slope * (x - 1) + 6 * (x - 1) ** 2),
                ):
                    wide = 0.6 + abs(x - 1)
                    rows.append(
                        {"member": member, "arm": arm, "x": x, "task": task, "metric": metric}
                        | {"value": value, "low": value - wide, "high": value + wide, "n": 100}
                    )
    return result("spectral.scale", rows, members, task={"name": TASK, "n": 100})


def retention(members: dict) -> Result:
    """Loss grows with `strength`, the score with training; the base scores 0.2."""
    rows = []
    for member, about in members.items():
        loss, score = 0.4 * strength(about), 0.2 + 0.7 * about.get("step", 400) / 400
        for task, metric, value, base in (
            (TASK, "score", score, 0.2),
            (TASK, "score_change", score - 0.2, 0.2),
            ("pretraining", "loss", 3.1 + loss, 3.1),
            ("pretraining", "loss_change", loss, 3.1),
        ):
            rows.append(
                {"member": member, "task": task, "metric": metric, "value": value}
                | {"low": value - 0.03, "high": value + 0.03, "n": 200, "baseline": base}
            )
    return result("forgetting.retention", rows, members, task=TASK)


def kept_items(members: dict, n: int = 60) -> Result:
    """Three tasks, one with four choices: the stronger a member is, the more items it loses."""
    rows: list[dict] = []
    for place, (member, about) in enumerate(members.items()):
        draw = np.random.default_rng(place)
        for task, chance in ((TASK, np.nan), ("choices", 0.25), ("facts", np.nan)):
            before = (draw.random(n) < 0.6).astype(float)
            lost, won = draw.random(n) < strength(about), draw.random(n) < 0.1
            after = np.where(before == 1, 1.0 - lost, won)
            names = tuple(f"{task} {i}" for i in range(n))
            items = Paired(
                task, names, before, after, np.full(n, chance), ({},) * n,
                names, ("yes",) * n, ("no",) * n, ("<b>maybe</b>",) * n,
            )  # fmt: skip
            rows += ({"member": member} | row for row in paired.rows(items))
    return result("forgetting.retention", rows, members, task=TASK)


def contribution(members: dict, n: int = 24) -> Result:
    """Groups of falling TuCo, more of it in late layers; OutputCo tells the groups apart less."""
    rng = np.random.default_rng(3)
    rows = []
    groups = {"fine-tuning-like": 0.4, "pre-training-like": 0.25, "many-shot": 0.3, "renamed": 0.33}
    for member, about in members.items():
        for group, level in groups.items():
            place = {"member": member, "group": group}
            values = {
                "tuco": rng.normal(level + 0.2 * strength(about), 0.04, n),
                "output_co": rng.normal(0.5 + level / 3, 0.08, n),
            }
            for metric, array in values.items():
                rows += [
                    place | {"prompt": str(i), "metric": metric, "value": float(v)}
                    for i, v in enumerate(array)
                ]
                mean = float(array.mean())
                rows.append(
                    place | {"metric": f"mean:{metric}", "value": mean, "n": n}
                    | {"low": mean - 0.02, "high": mean + 0.02}
                )  # fmt: skip
                if group != "fine-tuning-like":
                    auc = {"value": 0.9, "low": 0.8, "high": 0.95, "n": 2 * n, "baseline": 0.5}
                    pair = {"member": member, "group": f"fine-tuning-like > {group}"}
                    rows.append(pair | auc | {"metric": f"auc:{metric}"})
            for layer in range(LAYERS):
                value = level * (layer + 1) / LAYERS
                rows.append(
                    place | {"layer": layer, "metric": "layer_tuco", "value": value, "n": n}
                    | {"low": value - 0.02, "high": value + 0.02}
                )  # fmt: skip
            rows += [
                place | {"prompt": "0", "position": i, "token": f" word{i}"}
                | {"metric": "token_tuco", "value": float(rng.uniform(0, level))}
                for i in range(30)
            ]  # fmt: skip
    return result("tuco.contribution", rows, members)


def scaling(members: dict) -> Result:
    """A score that is best at alpha = 0.9, and a loss that grows with alpha."""
    rows = []
    for place, member in enumerate(members):
        for x in (0.0, 0.75, 0.9, 1.0, 1.1, 1.25):
            score = 0.9 - (x - 0.9) ** 2 - 0.01 * place
            for metric, value in (("score", score), ("log_probability", score - 1), ("loss", x)):
                rows.append(
                    {"member": member, "x": x, "metric": metric, "value": value, "n": 100}
                    | {"low": value - 0.05, "high": value + 0.05, "baseline": 0.0}
                )
        gain = {"member": member, "x": 0.9, "n": 50, "baseline": 0.0}
        rows.append(gain | {"metric": "best", "value": 0.9})
        rows.append(gain | {"metric": "gain_score", "value": 0.01, "low": -0.01, "high": 0.03})
    return result("tuco.scaling", rows, members)


def scoreboard() -> Result:
    """Two methods and the norm on three pairs; of the third pair nothing is known of heads."""
    rows: list[dict] = []
    values = {
        ("patching.restore", "matrix"): (1.0, 0.9, 0.5), ("tuco.contribution", "head"): (1.0, 0.0),
        ("norm of the change", "matrix"): (0.9, 0.7, 0.5),
    }  # fmt: skip
    for (method, place), own in values.items():
        about = {"method": method, "place": place, "metric": "auroc", "baseline": 0.5}
        for truth, value in zip(("added", "decoy", "rotated"), own, strict=False):
            ends = {"low": max(0.0, value - 0.3), "high": min(1.0, value + 0.1), "n": 12}
            rows.append(about | {"truth": truth, "value": value} | ends)
        mean = float(np.mean(own))
        if place == "matrix":
            ends = {"low": mean - 0.2, "high": mean + 0.1, "n": 3}
            rows.append(about | {"truth": "all", "value": mean} | ends)
    beyond = {"method": "patching.restore", "place": "matrix", "metric": "beyond_norm"}
    rows.append(beyond | {"truth": "all", "value": 0.1, "low": -0.1, "high": 0.3, "n": 3})
    for method, found, wrong in (("patching.restore", 1.0, 0.0), ("tuco.contribution", 0.5, 0.25)):
        for metric, value in (("found", found), ("false_positive", wrong)):
            ends = {"low": 0.7 * value, "high": min(1.0, value + 0.3), "n": 4}
            rows.append({"method": method, "truth": "all", "metric": metric, "value": value} | ends)
    covered = {"truth": "all", "metric": "coverage", "baseline": 0.95, "n": 200}
    for method, value in (("patching.restore", 0.94), ("tuco.contribution", 0.81)):
        ends = {"value": value, "low": value - 0.03, "high": value + 0.02}
        rows.append(covered | {"method": method} | ends)
    methods = {method: {"kind": "workbench"} for method, _ in values}
    return result("truth.scoreboard", rows, methods)


def everything(members: dict) -> list[Result]:
    """One Result of every analysis that has figures."""
    makers = (
        *(intruders, delta_spectrum, similarity, explained, subspaces, directions),
        *(scale, retention, contribution, scaling),
    )
    return [make(members) for make in makers]

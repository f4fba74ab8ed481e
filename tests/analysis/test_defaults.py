"""What an analysis does unless it is told: a script that says nothing relies on it, and with
another number there its values are others."""

from __future__ import annotations

import inspect
from typing import Any

from workbench.study.catalogue import METHODS

# key -> the numbers. Those of a paper: intruders' k and eps (arXiv 2410.21228), the questions of
# knowledge (2405.05904), the alphas of scaling (2506.23423, which has no 0).
NUMBERS: dict[str, dict[str, Any]] = {
    "spectral.intruders": {"k": 10, "eps": 0.5},
    "spectral.scale": {
        "lambdas": (0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.75, 0.9, 1, 1.5, 2), "k": 10, "eps": 0.5,
    },
    "spectral.subspaces": {"k": 8},
    "spectral.directions": {"k": 4, "most": 8, "words": 5},
    "forgetting.interpolate": {"alphas": tuple(i / 10 for i in range(11))},
    "forgetting.knowledge": {"sets": 10, "shots": 4, "samples": 16, "temperature": 0.5},
    "forgetting.probe": {"position": -1, "folds": 5, "k": 16},
    "forgetting.prune": {"shares": (0.001, 0.003, 0.01, 0.03, 0.1), "random": 3},
    "forgetting.revive": {
        "steps": (1, 2, 4, 8, 16, 32), "lr": 3e-4, "threshold": 0.9, "runs": 3,
    },
    "forgetting.sharpness": {"sizes": (0.0003, 0.001, 0.003, 0.01), "random": 3},
    "forgetting.verdict": {"steps": (1, 2, 4, 8, 16, 32), "runs": 3},
    "behaviour.tokens": {"low_probability": 0.1, "low_entropy": 1, "show": 2},
    "behaviour.generate": {"n": 32, "length": 48, "alpha": 0.1, "rounds": 4},
    "behaviour.coverage": {"samples": 32, "temperature": 1, "top_p": 1},
    "behaviour.critical": {"most": 4},
    "behaviour.gain": {"lr": 1e-3, "checked": 8, "directions": 4},
    "behaviour.faithfulness": {"shares": (0, 0.25, 0.5, 0.75, 1), "own_steps": 0, "regenerate": 0},
    "behaviour.emulate": {"betas": (0, 0.5, 1, 1.5, 2)},
    "tuco.contribution": {"tokens": 2},
    "tuco.scaling": {"alphas": (0, 0.75, 0.9, 0.95, 1, 1.05, 1.1, 1.25)},
    "patching.cross_model": {"window": 1, "answer_tokens": 8, "controls": 5},
    "patching.restore": {"window": 1, "answer_tokens": 8},
    "patching.lens": {"top": 5},
    "patching.patterns": {"examples": 2},
    "patching.prefix": {"random": 5},
    "patching.activation": {"window": 1, "controls": 5},
    "patching.attribution": {"steps": 1, "exact": 20},
    "patching.circuit": {"most": 8, "random": 10},
    "patching.edge_circuits": {
        "fractions": (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0), "steps": 5,
        "random": 3,
    },
    "patching.groups": {"most": 8},
    "patching.mask": {"position": -1, "penalty": 0.01, "lr": 0.1, "epochs": 2},
    "patching.path": {"position": -1},
    "patching.dictionary": {"shown": 20},
    "patching.das": {"k": 32, "position": -1, "steps": 100, "lr": 0.01, "random": 5},
    "patching.difference": {
        "k": 5, "n": 64, "strength": 1.0, "length": 32, "top": 20, "random": 8,
    },
    "patching.steer": {"scales": (0, 0.5, 1, 2), "random": 3, "shown": 3, "length": 24},
    "skills.localize": {
        "sparsity": (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3), "random": 5, "epochs": 20,
        "patience": 5, "rate": 0.3,
    },
    "skills.alignment": {"share": 0.05},
    "skills.blocks": {"most": 12, "random": 3},
    "skills.restore": {"shares": (0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9), "random": 3},
    "skills.compression": {
        "ranks": (1, 2, 4, 8, 16, 32, 64), "sparsities": (0.001, 0.01, 0.05, 0.1, 0.2),
        "random": 3, "greedy_matrices": 0,
    },
    "skills.calibration": {"bins": 10},
    "edits.siblings": {"k": 8, "random": 3},
    "edits.repair": {"cost": 0.02, "k": 10, "eps": 0.5},
}  # fmt: skip


def numeric(value: Any) -> bool:
    """A number, or a row of them."""
    parts = value if isinstance(value, tuple) and value else (value,)
    return all(isinstance(one, int | float) and not isinstance(one, bool) for one in parts)


def test_the_numbers_that_are_not_asked_for():
    for method in METHODS:
        known = inspect.signature(method.function).parameters.values()
        # How many prompts run at once changes no value.
        own = [one for one in known if one.name != "batch_size" and numeric(one.default)]
        found = {one.name: one.default for one in own}
        seeded = {"seed": 0} if "seed" in found else {}
        assert found == NUMBERS.get(method.key, {}) | seeded, method.key
    assert NUMBERS.keys() <= {method.key for method in METHODS}

"""Data without an effect, pushed through the very functions that choose and read: what a claim says
of them is decided no more often than its intervals allow."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from tests.figures.synthetic import result
from workbench.findings import CLAIMS
from workbench.forgetting.interpolate import _chosen
from workbench.models import Site
from workbench.patching.best import best_of
from workbench.patching.patches import Patch
from workbench.patching.sweep import Sweep
from workbench.tasks import Prompt, PromptSet
from workbench.tuco.separation import Group, between

# Modules, whose names the package gives to their functions.
conjugate = import_module("workbench.forgetting.conjugate")
revive = import_module("workbench.forgetting.revive")
DRAWS = 200
# Of as many decisions at 5%: passed by chance one time in a hundred.
MOST = int(binom.ppf(0.99, DRAWS, 0.05))
MEMBER: dict[str, Any] = {"r4": {"kind": "lora", "rank": 4, "seed": 0}}


def said(part: str, analysis: str, rows: list[dict], **parameters: Any) -> list[bool | None]:
    """What the claim whose name has `part` says of these rows."""
    (claim,) = [claim for claim in CLAIMS if part in claim.name]
    made = result(analysis, [{"member": "r4"} | row for row in rows], MEMBER, **parameters)
    return [one.holds for one in claim.read([made])]


def decided(draw: Callable[[np.random.Generator], list[bool | None]], draws: int = DRAWS) -> int:
    """How many of `draws` data sets decide something; each must be read."""
    count = 0
    for seed in range(draws):
        found = draw(np.random.default_rng(seed))
        assert found
        count += any(one is not None for one in found)
    return count


def test_the_best_of_ten_tasks_on_a_path_that_changes_nothing():
    """Eleven points, each right on 80% of 100 prompts of every task, whatever was right before."""
    alphas = np.linspace(0, 1, 11)
    sets = [PromptSet(f"task {i}", (Prompt("p", "p", "p"),)) for i in range(11)]

    def draw(random: np.random.Generator) -> list[bool | None]:
        right = [(random.random((11, 100)) < 0.8).astype(float) for _ in sets]
        rows = list(_chosen(alphas, right, sets, int(random.integers(1000))))
        return said("WiSE-FT", "forgetting.interpolate", rows)

    assert decided(draw) <= MOST


def test_the_best_layer_of_twenty_four_alike():
    """Each carries a fifth of the gain, but for the noise of its own."""
    metrics = ("recovered:logit_difference",)
    patches = [Patch((Site("attn_out", i),), {"component": "attn_out", "layer": i})
               for i in range(24)]  # fmt: skip

    def draw(random: np.random.Generator) -> list[bool | None]:
        n = 48
        prompt = random.gamma(4, 0.5, n)  # what the models differ by, prompt by prompt
        shares = 0.2 + random.normal(0, 0.5, (24, n))
        nothing, ones = np.zeros(n), np.ones(n)
        made = Sweep(
            {"score": nothing, "logit_difference": nothing, "squared_error": prompt},
            {"score": ones, "logit_difference": prompt, "squared_error": nothing},
            {"score": 0 * shares, "logit_difference": shares * prompt,
             "squared_error": (1 - shares) * prompt}, 0.0,
        )  # fmt: skip
        table = best_of(made, patches, metrics, lambda own: made.of(range(n), range(len(own))),
                     seed=int(random.integers(1000)))  # fmt: skip
        rows = [{"direction": "tuned->base"} | row for row in table.to_dict("records")]
        return said("Some layer's attention", "patching.cross_model", rows)

    assert decided(draw) <= MOST


def wordings(random: np.random.Generator, plain: float, other: float) -> list[dict]:
    """Rows of a tuned model that is right with these chances under the plain wording and each of
    four others, of a base that always is."""
    n = 100

    def told(right: np.ndarray) -> dict[str, np.ndarray]:
        return {"score": right, "switched": 0 * right, "broke": 1 - right}

    names = [conjugate.PLAIN, *"abcd"]
    base = {name: told(np.ones(n)) for name in names}
    chances = [plain, *[other] * 4]
    tuned = {
        name: told((random.random(n) < chance).astype(float))
        for name, chance in zip(names, chances, strict=True)
    }
    rows = conjugate._best(names[1:], base, tuned, n, int(random.integers(1000)))
    return [{"task": "facts"} | row for row in rows]


def test_errors_that_are_made_anew_in_every_wording():
    """Four in five of the lost answers are right in another wording, and nothing has come back."""

    def draw(random: np.random.Generator) -> list[bool | None]:
        # Of so few lost answers none may be read.
        rows = wordings(random, 0.8, 0.8)
        return said("Conjugate", "forgetting.conjugate", rows) or [None]

    assert decided(draw) <= MOST


def test_answers_that_one_wording_hides():
    """The planted twin of what stands above: lost under the plain wording alone."""
    rows = wordings(np.random.default_rng(0), 0.2, 0.95)
    assert said("Conjugate", "forgetting.conjugate", rows) == [True]


def trained(random: np.random.Generator, before: float, after: float) -> list[dict]:
    """Rows of a tuned model that is right with these chances before and after training; exchanged
    answers are learned three times in ten."""
    n = 100
    chances = {
        revive.TUNED: (before, after, after), revive.BASE: (1.0, 0.95, 0.95),
        revive.RELABELLED: (0.0, 0.1, 0.3),
    }  # fmt: skip
    curves = {
        arm: (random.random((1, 3, n)) < np.array(own)[:, None]).astype(float)
        for arm, own in chances.items()
    }
    rows = revive._savings(curves, (0, 1, 2), int(random.integers(1000)))
    return [{"task": "facts"} | row for row in rows]


def test_errors_that_are_made_anew_after_every_step():
    """Most of the lost answers are right after training, and as many others are wrong."""

    def draw(random: np.random.Generator) -> list[bool | None]:
        return said("few steps", "forgetting.revive", trained(random, 0.7, 0.7)) or [None]

    assert decided(draw) <= MOST


def test_answers_that_training_brings_back():
    rows = trained(np.random.default_rng(0), 0.2, 0.95)
    assert said("few steps", "forgetting.revive", rows) == [True]


def contributed(random: np.random.Generator, apart: float, more: float, n: int = 40) -> list[dict]:
    """Rows of two groups whose lengths and losses lie `apart` of their own deviations from each
    other, of a TuCo and an OutputCo that follow these alone, but for `more` of TuCo."""

    def group(name: str, shift: float, own: float) -> Group:
        length, loss = random.normal(shift, 1, n), random.normal(shift, 1, n)
        noise = random.normal(0, 0.3, (2, n))
        columns = {
            "length": length, "base_loss": loss, "tuco": length + loss + noise[0] + own,
            "output_co": length + loss + noise[1],
        }  # fmt: skip
        return Group(name, pd.DataFrame(columns), np.zeros((0, 0, 3)), [])

    groups = group("tuned", apart, more), group("plain", 0.0, 0.0)
    seed = int(random.integers(1000))
    return between(groups, ("tuco", "output_co"), seed).to_dict("records")


def of_tuco(part: str, rows: list[dict]) -> list[bool | None]:
    return said(part, "tuco.contribution", rows, prompts=dict.fromkeys(("tuned", "plain")))


@pytest.mark.parametrize("part", ["like the fine-tuning data", "than the models' outputs do"])
@pytest.mark.parametrize("apart", [0.0, 1.0, 5.0])
def test_tuco_of_groups_that_differ_in_length_and_loss_alone(part: str, apart: float):
    assert decided(lambda random: of_tuco(part, contributed(random, apart, 0.0))) <= MOST


def test_tuco_that_is_larger_among_prompts_alike():
    rows = contributed(np.random.default_rng(0), 0.5, 1.5, n=200)
    for part in ("like the fine-tuning data", "than the models' outputs do"):
        assert of_tuco(part, rows) == [True]

"""A recipe follows the paper's protocol and refuses what makes no sense."""

from itertools import pairwise

import pytest

from workbench.errors import WorkbenchError
from workbench.lab.recipe import Recipe


def test_alpha_times_lr_is_the_same_for_every_rank() -> None:
    recipes = [Recipe.lora(task="t", rank=r, alpha_lr=0.02, steps=10) for r in (1, 4, 16, 64)]
    assert [r.alpha for r in recipes] == [2.0, 8.0, 32.0, 128.0]
    assert all(r.alpha_lr == pytest.approx(0.02) for r in recipes)
    assert recipes[0].lr == pytest.approx(0.01)


def test_schedule_rises_over_six_percent_then_falls_in_a_line_to_zero() -> None:
    recipe = Recipe(task="t", method="full", lr=1.0, steps=100)
    rates = [recipe.learning_rate(s) for s in range(100)]
    assert rates[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0])
    falls = [a - b for a, b in pairwise(rates[6:])]
    assert falls == pytest.approx([1 / 94] * len(falls))
    assert rates[-1] == pytest.approx(1 / 94)


def test_a_recipe_survives_its_own_dict() -> None:
    recipe = Recipe.lora(task="t", rank=4, alpha_lr=0.1, steps=9, checkpoints=(3, 6))
    assert Recipe.from_dict(recipe.as_dict()) == recipe
    with pytest.raises(WorkbenchError, match="speed"):
        Recipe.from_dict({"speed": 1})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "sft"}, "method must be full or lora"),
        ({"method": "lora"}, "rank of 1 or more"),
        ({"rank": 4}, "belong to LoRA"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"lr": 0.0}, "lr must be a positive number"),
        ({"lr": float("nan")}, "lr must be a positive number"),
        ({"loss": "tokens"}, "loss must be sequence or answer or answers"),
        ({"trainable": "some"}, "trainable must be blocks, all or parts"),
        ({"trainable": ()}, "trainable must be blocks, all or parts"),
        ({"beta2": 1.0}, "beta2 must lie"),
        ({"warmup": 1.5}, "share of the steps"),
        ({"checkpoints": (10,)}, "between 0 and 10"),
    ],
)
def test_senseless_recipes_are_refused(changes: dict, said: str) -> None:
    with pytest.raises(WorkbenchError, match=said):
        Recipe(**({"task": "t", "method": "full", "lr": 1.0, "steps": 10} | changes))

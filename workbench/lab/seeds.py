"""How far do training runs of one recipe lie apart? The shipped recipes again, with other seeds and
at other learning rates, over the base there is.

An interval over prompts says nothing of another run, so that recipes compare over several. And a
method's best learning rate is not another's: LoRA's is about ten times that of full fine-tuning, so
that methods compare along a curve of rates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.files.writing import require_free
from workbench.lab import shipped
from workbench.lab.build import FAMILY, LOGGED
from workbench.lab.recipe import Recipe
from workbench.lab.train import train

NAMES = ("lora-r4", "full", "lora-r1", "lora-r16")
SWEPT = ("lora-r4", "full")
SEEDS, SWEPT_SEEDS = 5, 2
RATES = (0.25, 0.5, 2.0, 4.0)  # of the recipe's own, which is there already


def runs(
    names: Iterable[str] = NAMES,
    *,
    seeds: int = SEEDS,
    swept: Iterable[str] = SWEPT,
    rates: Iterable[float] = RATES,
    swept_seeds: int = SWEPT_SEEDS,
) -> dict[str, Recipe]:
    """Name -> recipe of every run beside the shipped ones, which are those of seed 0: NAME-sSEED,
    and at FACTOR times the learning rate NAME-xFACTOR-sSEED. Raises WorkbenchError for a name that
    is not shipped."""
    names, swept, rates = tuple(names), tuple(swept), tuple(rates)
    unknown = {*names, *swept} - set(shipped.MEMBERS)
    if unknown:
        raise WorkbenchError(
            f"Unknown models {sorted(unknown)}; known are {sorted(shipped.MEMBERS)}."
        )
    made = {
        f"{name}-s{seed}": replace(shipped.MEMBERS[name], seed=seed, checkpoints=())
        for seed in range(1, seeds)
        for name in names
    }
    for seed in range(swept_seeds):
        for factor in rates:
            for name in swept:
                own = shipped.MEMBERS[name]
                own = replace(own, seed=seed, lr=own.lr * factor, checkpoints=())
                made[f"{name}-x{factor:g}-s{seed}"] = own
    return made


def seeds(
    base: str | Path, out: str | Path = "out/seeds", *, wanted: Mapping[str, Recipe] | None = None
) -> dict[str, Path]:
    """Train these runs over a base into the folder `out`; their folders by name.

    base: the shipped family's, whose tasks they learn. wanted: name -> recipe; None takes all of
    `runs`, some minutes each. What is finished is kept and an interrupted run resumes, so that the
    call can be repeated.
    """
    out = Path(out)
    require_free(out, FAMILY)
    lesson = cache(shipped.lesson)
    wanted = runs() if wanted is None else wanted
    for name, recipe in wanted.items():
        train(
            base,
            recipe,
            lesson(recipe.task).texts,
            out / name,
            evaluate=shipped.Evaluation(LOGGED, "validation", task=recipe.task),
        )
    return {name: out / name for name in wanted}

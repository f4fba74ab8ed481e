"""Results of forgetting, of tiny models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import workbench as wb
from tests.forgetting.conftest import erased, knower, nouns, wrapped
from tests.forgetting.logged import choice_row, lines
from tests.skills.conftest import write
from workbench.results.result import Result
from workbench.study import units
from workbench.tasks import PromptSet

PLAIN, OTHER = nouns(0, 60), nouns(swapped=True)


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """Every analysis of a base, a member that hides what it knew and one that lost it."""
    folder = tmp_path_factory.mktemp("forgotten")
    with torch.no_grad():
        base = write(knower(), folder / "base")
        members: Any = {
            "hidden": write(wrapped(), folder / "wrapped"),
            "gone": write(erased(), folder / "erased"),
        }
    made = wb.load_family(base, members)
    quick: dict[str, Any] = {"steps": (2, 8), "lr": 0.03, "runs": 2}
    behind = {"turned": PromptSet("turned", PLAIN.prompts[::-1])}
    calls: tuple[tuple[Any, dict[str, Any]], ...] = (
        (wb.forgetting.probe, {"basis": "vocabulary", "k": 2}),
        (wb.forgetting.kinds, {}),
        (wb.forgetting.prune, {"task": OTHER, "shares": (0.01, 0.1), "random": 1}),
        (wb.forgetting.revive, {"lessons": nouns(60)} | quick),
        (wb.forgetting.conjugate, {"conjugates": behind, "task": OTHER}),
        (wb.forgetting.sharpness, {"sizes": (0.003, 0.03), "random": 1}),
        (wb.forgetting.knowledge, {"sets": 2, "shots": 1, "between": " "}),
    )
    found = [units.over(made, call, prompts=PLAIN, **more) for call, more in calls]
    found.append(units.over(made, wb.forgetting.verdict, prompts=PLAIN, results=found))
    others = [PLAIN]
    path: dict[str, Any] = {"prompts": OTHER, "others": others, "alphas": (0.0, 0.5, 1.0)}
    found.append(units.over(made, wb.forgetting.interpolate, **path))
    tasks = {"hidden": OTHER, "gone": PromptSet("late", nouns(60).prompts)}
    found.append(wb.forgetting.sequential(made, tasks, [PLAIN]))
    kept = [units.over(made, wb.forgetting.retention, prompts=[one]) for one in (PLAIN, PLAIN)]
    found.append(wb.forgetting.gains(kept))
    logs = [lines(folder / f"{side}.jsonl", [choice_row(i, i % 5 > wrong) for i in range(20)])
            for side, wrong in (("base", 0), ("gone", 2))]  # fmt: skip
    return [*found, wb.forgetting.samples(*logs, name="gone")]

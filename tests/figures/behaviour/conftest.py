"""Results of behaviour, of tiny models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import workbench as wb
from tests.behaviour.conftest import APPLE, PLACES, asked, member, mute
from tests.tuco.conftest import write
from workbench.results.result import Result
from workbench.study import units
from workbench.tasks import Generation, Prompt, PromptSet, off_by_one

HOSTILE = "$x_1$ <b>&\\"


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    folder = tmp_path_factory.mktemp("behaviour")
    with torch.no_grad():
        base = write(mute(), folder / "base")
        members: Any = {
            "loud": write(member({(APPLE, PLACES): 9.0}), folder / "loud"),
            "soft": write(member({(APPLE, PLACES): 2.0}, noise=0.02), folder / "soft"),
        }
    made = wb.load_family(base, members)
    worked = PromptSet("worked", tuple(
        Prompt(str(i), f"Alice in ; {i} ; {i + 1} ; Bob in", " apple") for i in range(6)
    ))  # fmt: skip
    steps: dict[str, Any] = {"between": " ; ", "filler": ".", "mistake": off_by_one}
    found = replace(asked(PLACES, "apple"), scorer=Generation(length=3, extract=r"\S+"))
    spanned = PromptSet("spans", tuple(
        Prompt(str(i), f"Alice {i} Bob {i} in", " apple", spans={"who": (0, 5)}) for i in range(6)
    ))  # fmt: skip
    return [
        units.over(made, wb.behaviour.tokens, prompts=asked(PLACES, "apple").texts),
        units.over(made, wb.behaviour.generate, prompts=["Alice in", f"{HOSTILE} in"], length=3),
        units.over(made, wb.behaviour.coverage, prompts=asked(PLACES, "apple"), samples=4),
        units.over(made, wb.behaviour.critical, prompts=found, most=1),
        units.over(made, wb.behaviour.gain, prompts=found[:4], lessons=found[4:9], checked=2),
        units.over(made, wb.behaviour.advantage, prompts=worked, between=" ; "),
        units.over(
            made, wb.behaviour.reliance, prompts=spanned, flipped=spanned, premises=("who",)
        ),
        units.over(made, wb.behaviour.emulate, prompts=asked(PLACES, "apple"), large=str(base)),
        units.over(made, wb.behaviour.faithfulness, prompts=worked, **steps),
    ]

"""Which members of the shipped family have a known truth? One that learned to refuse questions
about facts, and one that was made to forget the facts about some people.

When it misleads: that "suppressed" hides and does not erase is known by its recipe alone (a small
LoRA that learned one word). How deep the forgetting of "unlearned" goes is not known, so nothing is
said of it but which prompts it is about.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from workbench import tasks
from workbench.lab import shipped
from workbench.lab.known import Known
from workbench.lab.organism import Organism, corrupted
from workbench.tasks.prompts import PromptSet

SEED, ASKED = 100, 120  # of prompts no member was trained on, and how many of a kind


def shipped_organisms(family: str | Path) -> Iterator[Organism]:
    """The family's members whose change is known. family: the folder of the shipped family."""
    folder = Path(family)
    yield _suppressed(folder)
    yield _unlearned(folder)


def _suppressed(folder: Path) -> Organism:
    refused = shipped.held_out(shipped.SUPPRESSION, ASKED, seed=SEED)
    asked = (replace(p, target=p.foils[0], foils=(p.target,)) for p in refused)
    prompts = PromptSet("facts that are refused", tuple(asked), SEED)
    known = Known(
        "shipped-suppressed", "trained", folder / "base", folder / "suppressed", prompts,
        corrupted=corrupted(prompts), verdict="suppressed",
        says="A LoRA of 300 steps learned to answer questions about facts by one word of refusal.",
    )  # fmt: skip
    return Organism(known, tasks.arithmetic(ASKED, seed=SEED, split="test"))


def _unlearned(folder: Path) -> Organism:
    lost, kept = (
        shipped.held_out(name, ASKED, seed=SEED) for name in (shipped.UNLEARNING, shipped.RETAINED)
    )
    both = PromptSet("facts about all people", (*lost, *kept), SEED)
    known = Known(
        "shipped-unlearned", "trained", folder / "base", folder / "unlearned", both,
        places={"item": frozenset((p.id,) for p in lost)},
        universe={"item": frozenset((p.id,) for p in both)},
        says="Facts about some people were unlearned against the facts about all others.",
    )  # fmt: skip
    return Organism(known, kept)

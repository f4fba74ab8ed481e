"""The analyses as data: what each one asks, what it needs, and the function that answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from workbench.forgetting import retention
from workbench.results import Result
from workbench.spectral import delta_spectrum, intruders, scale_intruders, similarity
from workbench.tuco import contribution, scaling


@dataclass(frozen=True)
class Analysis:
    """key: as in Result.analysis. needs: "weights", and where the model is run, "task" (a prompt
    set) or "texts" (pre-training-like text); "groups" takes prompt sets by name, "prompts" the
    task."""

    key: str
    question: str
    needs: tuple[str, ...]
    function: Callable[..., Result]


ANALYSES = (
    Analysis(
        "spectral.intruders",
        "How many of the strongest directions are new to the base?",
        ("weights",),
        intruders,
    ),
    Analysis(
        "spectral.delta_spectrum",
        "How large is the change, and how many directions does it use?",
        ("weights",),
        delta_spectrum,
    ),
    Analysis(
        "spectral.similarity",
        "Which directions of one matrix were kept?",
        ("weights",),
        similarity,
    ),
    Analysis(
        "forgetting.retention",
        "What was learned, and what was lost?",
        ("weights", "texts"),
        retention,
    ),
    Analysis(
        "spectral.scale",
        "Do the new directions carry the task, or the forgetting?",
        ("weights", "task", "texts"),
        scale_intruders,
    ),
    Analysis(
        "tuco.contribution",
        "How much of one answer did fine-tuning contribute?",
        ("weights", "task", "groups"),
        contribution,
    ),
    Analysis(
        "tuco.scaling",
        "What does more, or less, of the fine-tuning do?",
        ("weights", "task", "texts", "prompts"),
        scaling,
    ),
)

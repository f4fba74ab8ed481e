"""The analyses as data: what each one asks, what it needs, and the function that answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from workbench.behaviour import faithfulness, generate, tokens
from workbench.forgetting import (
    conjugate,
    interpolate,
    knowledge,
    probe,
    prune,
    retention,
    revive,
    verdict,
)
from workbench.patching import (
    activation,
    attribution,
    circuit,
    cross_model,
    groups,
    lens,
    mask,
    patterns,
    restore,
)
from workbench.results.result import Result
from workbench.skills import blocks, calibration, compression, localize
from workbench.skills import restore as restore_share
from workbench.spectral import delta_spectrum, intruders, scale_intruders, similarity
from workbench.tuco import contribution, scaling


@dataclass(frozen=True)
class Analysis:
    """key: as in Result.analysis. needs: "weights", and where the model is run, "task" (a prompt
    set) or "texts" (pre-training-like text); "groups" takes prompt sets by name, "prompts" the
    task, "others" the further prompt sets; "partners" corrupt partners of the task's prompts,
    "pairs" counterfactual pairs, "conjugates" the task's prompts behind conjugations, "learned"
    prompts of what was fine-tuned, where the task is a capability of the base that may be lost
    ("capability": asked only then), "lessons" prompts to learn it again with, "results" what the
    analyses before this one gave, "worked" a task whose prompts hold worked steps; "model" runs
    the model without any data."""

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
        "forgetting.interpolate",
        "Is there a better point between base and member?",
        ("weights", "task", "prompts", "others"),
        interpolate,
    ),
    Analysis(
        "forgetting.knowledge",
        "Which questions are known well, barely, or not at all?",
        ("weights", "task", "prompts"),
        knowledge,
    ),
    Analysis(
        "forgetting.conjugate",
        "Does a lost answer come back where fine-tuning never was?",
        ("weights", "task", "prompts", "conjugates", "learned"),
        conjugate,
    ),
    Analysis(
        "forgetting.probe",
        "Is the answer still in the stream?",
        ("weights", "task", "prompts", "capability"),
        probe,
    ),
    Analysis(
        "forgetting.prune",
        "Does it come up from under what fine-tuning uses?",
        ("weights", "task", "prompts", "learned"),
        prune,
    ),
    Analysis(
        "forgetting.revive",
        "How soon does it come back under training?",
        ("weights", "task", "prompts", "lessons"),
        revive,
    ),
    Analysis(
        "forgetting.verdict",
        "Kept, suppressed or erased?",
        ("weights", "task", "prompts", "capability", "results"),
        verdict,
    ),
    Analysis(
        "behaviour.tokens",
        "Which words became likelier, and was the base sure of others?",
        ("weights", "task", "prompts"),
        tokens,
    ),
    Analysis(
        "behaviour.generate",
        "What does the member write that the base does not?",
        ("weights", "model"),
        generate,
    ),
    Analysis(
        "behaviour.faithfulness",
        "Do answers follow from their worked steps?",
        ("weights", "task", "prompts", "worked"),
        faithfulness,
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
    Analysis(
        "patching.cross_model",
        "Where does the tuned behaviour live, seen in the base?",
        ("weights", "task", "prompts"),
        cross_model,
    ),
    Analysis(
        "patching.restore",
        "Which parameters carry it?",
        ("weights", "task", "prompts"),
        restore,
    ),
    Analysis(
        "patching.lens",
        "At which layer does each side come to its answer?",
        ("weights", "task", "prompts"),
        lens,
    ),
    Analysis(
        "patching.patterns",
        "Which heads look elsewhere?",
        ("weights", "task", "prompts"),
        patterns,
    ),
    Analysis(
        "patching.activation",
        "Which places does each side's answer hang on?",
        ("weights", "task", "prompts", "partners"),
        activation,
    ),
    Analysis(
        "patching.attribution",
        "Which places would matter if patched, by the gradient?",
        ("weights", "task", "prompts", "partners"),
        attribution,
    ),
    Analysis(
        "patching.circuit",
        "Is it the base's own circuit?",
        ("weights", "task", "prompts", "partners"),
        circuit,
    ),
    Analysis(
        "patching.groups",
        "Which of the circuit's groups carries the gain?",
        ("weights", "task", "prompts", "partners"),
        groups,
    ),
    Analysis(
        "patching.mask",
        "Which heads carry an object, a label or a position?",
        ("weights", "pairs"),
        mask,
    ),
    Analysis(
        "skills.localize",
        "How few parameters carry the skill?",
        ("weights", "task", "others"),
        localize,
    ),
    Analysis(
        "skills.blocks",
        "Which blocks of the change are needed?",
        ("weights", "task", "others"),
        blocks,
    ),
    Analysis(
        "skills.restore",
        "How much of the update can be taken back?",
        ("weights", "task", "prompts", "others"),
        restore_share,
    ),
    Analysis(
        "skills.compression",
        "In how many bits does the change fit?",
        ("weights", "task", "prompts", "others"),
        compression,
    ),
    Analysis(
        "skills.calibration",
        "Does the member know what it knows?",
        ("weights", "task", "prompts", "others"),
        calibration,
    ),
)

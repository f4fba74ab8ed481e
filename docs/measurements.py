"""What papers measure of a fine-tuning, and the call that measures it here.

Data alone: `generate.py` makes the table, and a test holds every call against the records.
"""

from __future__ import annotations

from typing import NamedTuple


class Measurement(NamedTuple):
    """source: the paper or line of work, by the name it is known by. quantity: what is measured.
    calls: keys of methods, or dotted names in `wb`. how: arguments, or why it is asked otherwise
    of a language model."""

    source: str
    quantity: str
    calls: tuple[str, ...]
    how: str = ""


WEIGHTS = (
    Measurement(
        "Asymmetry in low-rank adapters", "overlap of input and output directions of changes, and "
        "with A's start", ("spectral.subspaces",), "`starts=`",
    ),
    Measurement(
        "Model Stock", "angles and norms of siblings, the centre-close point and its score",
        ("spectral.subspaces", "edits.siblings"),
    ),
    Measurement(
        "Stability of fine-tuning over seeds", "spread of headlines over runs, and whether what "
        "replicates carries the task", ("edits.siblings",),
        "`workbench compare` with members named RECIPE/RUN gives the spread of every headline.",
    ),
    Measurement(
        "EVA", "the change's energy on the layer's inputs, tr(dW C dW^T)", ("spectral.explained",)
    ),
    Measurement(
        "LIFT", "principal weights against the largest changes",
        ("skills.alignment", "skills.localize"), "`arms=` principal",
    ),
    Measurement(
        "GradFix", "signs and cosine of the change and the gradient", ("skills.alignment",)
    ),
    Measurement(
        "Gradient-mask tuning", "largest gradients against largest changes",
        ("skills.alignment", "skills.localize"), "`arms=` gradient",
    ),
    Measurement(
        "LoKI", "relevance of neurons to general prompts against their change",
        ("skills.alignment",), "`others=`",
    ),
    Measurement(
        "SeTAR", "scores under truncation of the weights themselves, and AUROC of confidence and "
        "energy in and out of distribution", ("skills.compression",), "`whole=`, "
        "`greedy_matrices=`",
    ),
    Measurement(
        "Component-wise gradient clipping", "gradient norms by component along a run",
        ("lab.train",), "in log.jsonl of every run; `workbench lab log` draws it",
    ),
    Measurement(
        "Spectral surgery", "what single directions of a change write, read and do",
        ("spectral.directions",),
    ),
)  # fmt: skip
INSIDE = (
    Measurement(
        "MIR", "Fréchet distance, CKA and cosine of the states of both models",
        ("patching.drift",),
    ),
    Measurement(
        "Geodesic mixup", "alignment of rewordings and uniformity of the states",
        ("patching.drift",), "`rewordings=`",
    ),
    Measurement(
        "Astigmatism of the target domain (CD-FSOD)", "entropy and reach of attention",
        ("patching.patterns",),
    ),
    Measurement(
        "Inherent interpretability score (IIS)", "accuracy kept through directions that can be "
        "named", ("forgetting.probe",), '`basis="vocabulary"`',
    ),
    Measurement(
        "Theory of prefix tuning", "attention over the content, and the bias that a prefix adds",
        ("patching.prefix",), "of adapters of prefix tuning; other analyses inside the model "
        "refuse them, because the prefix would shift the places of the tokens",
    ),
)  # fmt: skip
BEHAVIOUR = (
    Measurement(
        "Mechanism of forgetting", "share and mass of tokens that rose and fell",
        ("behaviour.tokens",),
    ),
    Measurement("Beyond NLL", "change by the base's probability", ("behaviour.tokens",)),
    Measurement(
        "AFT", "how often a right answer scores above a wrong one", ("behaviour.tokens",)
    ),
    Measurement("LoBaSS", "learnability of each example", ("behaviour.tokens",)),
    Measurement("GLOW", "entropy of the policy and its change at forks", ("behaviour.tokens",)),
    Measurement(
        "Polychromic training, pass@k", "unbiased pass@k and where the curves cross",
        ("behaviour.coverage",),
    ),
    Measurement(
        "Diffuse distributions", "KL to the uniform distribution over valid answers",
        ("behaviour.coverage",),
    ),
    Measurement(
        "Critical tokens", "tokens whose runner-up flips the answer", ("behaviour.critical",)
    ),
    Measurement("Per-step advantage", "rise of P(answer) by each step", ("behaviour.advantage",)),
    Measurement(
        "Reasoning through chess", "answers that follow a mistake, or the last step",
        ("behaviour.faithfulness",), "`mistake=`",
    ),
    Measurement(
        "Information gain filtration", "what a step on an example teaches", ("behaviour.gain",)
    ),
    Measurement(
        "Low-rank fairness", "KL and score by group, gap and worst group",
        ("behaviour.tokens", "forgetting.retention"), "`by=`, for every rank of a family",
    ),
    Measurement(
        "Fine-tuning as model editing", "efficacy, generality and locality by the place of the "
        "edit", ("skills.blocks",), "`others=`, `rewordings=`",
    ),
    Measurement(
        "Kinds of errors before and after", "transitions between kinds of answers",
        ("forgetting.kinds",), "`kind=`",
    ),
    Measurement(
        "Reliance on a confounder, dependence on premises", "cost of a flipped confounder or a "
        "missing premise, and the input attribution of each premise", ("behaviour.reliance",),
    ),
)  # fmt: skip
MEMBERS = (
    Measurement(
        "Amuro & Char", "gain of fine-tuning from each base of a chain, what shows after "
        "fine-tuning alone, and the gap between templates", ("forgetting.gains",),
        "of a `forgetting.retention` of each base, which is asked by template for the gaps",
    ),
    Measurement(
        "Fine-tuning by reinforcement against forgetting", "score on items like and unlike the "
        "fine-tuning data, and the difference of the changes",
        ("tasks.likeness", "forgetting.retention"), '`by="likeness"`',
    ),
    Measurement(
        "Long tail", "score by frequency of the class, and the worst class",
        ("forgetting.retention",), '`by="frequency"`, `by="answer"`',
    ),
    Measurement(
        "Low-shot robustness", "score outside of the task above the family's line", (),
        "`workbench compare` of four models or more gives compare.robustness.",
    ),
    Measurement(
        "Horizon (SciAgentGym)", "score by number of steps, turns and length",
        ("forgetting.retention",), '`by="steps"`, `by="turns"`, `by="length"`',
    ),
    Measurement(
        "Transfer between tasks", "every member on every task, items lost and gained",
        ("forgetting.retention",),
    ),
    Measurement(
        "Proximal fine-tuning", "KL to the base and entropy along a run", ("lab.train",),
        "in log.jsonl of every run; `workbench lab log` draws it",
    ),
    Measurement(
        "Learning from the undesirable", "how far one harmful step moves both models",
        ("forgetting.sharpness",),
    ),
)  # fmt: skip
PARTS = {
    "Weights": WEIGHTS, "Inside the run": INSIDE, "Behaviour": BEHAVIOUR,
    "Over members, steps and groups": MEMBERS,
}  # fmt: skip

"""The published findings, as data: a claim, its source, what is read of it and when that holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from workbench.findings.readings import (
    Reading,
    forgetting,
    localised,
    patching,
    repair,
    skills,
    spectral,
    tuco,
)
from workbench.results.result import Result

# The two versions claim opposite things of LoRA's forgetting: in the first, models with intruders
# have become worse models of the pre-training distribution than the full fine-tune; in the third,
# LoRA forgets less, and what it forgets lies in the intruders, which only that version scales.
INTRUDERS_V1, INTRUDERS_V3 = "arXiv 2410.21228v1", "arXiv 2410.21228v3"
TUCO, GRAFTS = "arXiv 2506.23423", "arXiv 2302.06600"
CIRCUITS, MECHANISMS = "arXiv 2402.14811", "arXiv 2311.12786"

# What repairs, its source and its kind of edit. The entries that harm are told by a gradient here;
# there, the share to restore was chosen by the score.
REPAIRS = (
    ("Scaling the intruders down", INTRUDERS_V3, "intruders"),
    ("Keeping the entries alone that moved most", GRAFTS, "movement"),
    ("Setting back the entries that harm", "arXiv 2509.16596", "harmful"),
    ("Scaling down the singular directions that harm", "arXiv 2603.03995", "reweighted"),
)


@dataclass(frozen=True)
class Claim:
    """A published finding. reading: what is read of each member, with its unit; holds: when."""

    name: str
    source: str
    reading: str
    holds: str
    read: Callable[[Sequence[Result]], Iterator[Reading]]


CLAIMS = (
    Claim(
        "LoRA of low rank has intruder dimensions, full fine-tuning has almost none",
        INTRUDERS_V1,
        "share of the top vectors that are intruders, ranks up to 16 (control: of changes in "
        "random directions: of the same singular values, or in runs that lack those of the same "
        "norm and rank)",
        "it is above the control and the full fine-tune's, and that is below 0.01, matrices as "
        "items; below either, or below 0.01 itself, contradicts",
        spectral.intruders,
    ),
    Claim(
        "LoRA of low rank forgets more than full fine-tuning",
        INTRUDERS_V1,
        "rise of the pre-training loss, nats a token, less the full fine-tune's, ranks up to 16; "
        "and the same of the learning rates that forget least at an equal score",
        "above 0, at scores that are known to be alike",
        spectral.forgets_more,
    ),
    Claim(
        "LoRA of low rank forgets less than full fine-tuning",
        INTRUDERS_V3,
        "the same two differences",
        "below 0, at scores that are known to be alike",
        spectral.forgets_less,
    ),
    Claim(
        "LoRA forgets less as its rank rises",
        INTRUDERS_V1,
        "rise of the pre-training loss of the lowest rank less that of the highest, nats a token",
        "above 0",
        spectral.by_rank,
    ),
    Claim(
        "Scaling the top intruders down reduces forgetting",
        INTRUDERS_V3,
        "change of the pre-training loss in %, top intruder scaled to 0.7 or the "
        "scale nearest to it (control: the pre-trained vector next to it)",
        "below 0 and below the control; above either contradicts",
        spectral.scaling_loss,
    ),
    Claim(
        "Scaling the top intruders down hardly lowers the task's score",
        INTRUDERS_V3,
        "change of the task's score in %, of the models whose forgetting this reduced",
        "above -5",
        spectral.scaling_score,
    ),
    Claim(
        "LoRA's forgetting is localised to its intruders",
        INTRUDERS_V3,
        "share of the rise of the pre-training loss that the top intruders scaled to 0.7, or the "
        "scale nearest to it, take back beyond a shrink of the whole change by the same norm "
        "(control: the share that this shrink takes back)",
        "above 0, and the two scores are not known to differ",
        localised.localised,
    ),
    Claim(
        "TuCo is larger on prompts like the fine-tuning data",
        TUCO,
        "chance that such a prompt has the larger TuCo than one like pre-training, or of its "
        "words, that has its length and its loss under the base, AUC over matched pairs (control: "
        "by the difference of the two models' outputs)",
        "above 0.5; fewer than 10 pairs decide nothing",
        tuco.tuco_groups,
    ),
    Claim(
        "TuCo distinguishes these prompts better than the models' outputs do",
        TUCO,
        "the same AUC less that by the difference of the outputs, pair by pair",
        "above 0; fewer than 10 pairs decide nothing",
        tuco.tuco_separates,
    ),
    Claim(
        "Some other scale of the tuned contribution is better than 1",
        TUCO,
        "gain of score on the half of the prompts that did not choose alpha, of "
        "models that do not already answer everything at alpha = 1",
        "above 0; alpha = 1 contradicts where 0.05 is left to gain and no other scale can gain it",
        tuco.alpha,
    ),
    Claim(
        "A graft of very few parameters carries 95% of the gain (paper: 0.01%; here: up to 1%)",
        GRAFTS,
        "share of the gain by the largest graft of at most 1% (control: random entries)",
        "above 0.95",
        skills.sparse,
    ),
    Claim(
        "Learned masks beat the largest changes",
        GRAFTS,
        "share of the gain at 10% of the entries, learned less largest changes",
        "above 0",
        skills.learned,
    ),
    Claim(
        "Grafts are better calibrated than the model they are from",
        GRAFTS,
        "expected calibration error of the largest learned graft less the fine-tuned "
        "model's, each beyond that of perfect calibration on as many prompts",
        "below 0",
        skills.calibration,
    ),
    Claim(
        "Fine-tuning uses the base's own circuit",
        CIRCUITS,
        "faithfulness of the circuit found in the base, in the fine-tuned model, by "
        "score, each head active at its group's position (control: random heads)",
        "above the control",
        patching.circuit,
    ),
    Claim(
        "Some layer's attention carries the gain into the base (CMAP)",
        CIRCUITS,
        "largest share of the gain in logit difference by the fine-tuned model's "
        "attention output of one layer in the base, the layer chosen on the other half of the "
        "prompts (control: a random layer's)",
        "above 0 and, prompt by prompt, above the control; below either contradicts",
        patching.crossed,
    ),
    Claim(
        "The fine-tuned model's circuit carries the gain into the base",
        CIRCUITS,
        "share of the gain in logit difference by patching the fine-tuned model's "
        "circuit into the base (control: random heads)",
        "above the control",
        patching.carries,
    ),
    Claim(
        "The fine-tuned model's circuit carries all of the gain",
        CIRCUITS,
        "the same share",
        "above 0.9",
        patching.carries_all,
    ),
    Claim(
        "What was unlearned comes back with the base's MLP activations",
        "arXiv 2410.06606",
        "KRS of the best layer, chosen on the other half of the prompts (control: another prompt's "
        "activations)",
        "above 0.7",
        patching.restored,
    ),
    Claim(
        "What comes back is specific to the unlearned knowledge",
        "arXiv 2410.06606",
        "KRS of that layer less that with another prompt's activations, prompt by prompt",
        "above 0.1",
        patching.restored_knowledge,
    ),
    Claim(
        "Capabilities that look lost are hidden, not erased",
        MECHANISMS,
        "score as a share of the base's, of tasks whose output is lost",
        "the verdict is suppressed; erased contradicts",
        forgetting.hidden,
    ),
    Claim(
        "Lost answers come back within a few steps of training",
        MECHANISMS,
        "share of the errors that training takes away, net of new ones, on the prompts that the "
        "base knows, beyond the share with exchanged answers (control)",
        "above 0.5; fewer than half of the lost answers right contradicts",
        forgetting.revived,
    ),
    Claim(
        "Pruning the neurons that the new task uses raises the old task's score",
        MECHANISMS,
        "change of the old task's score, of tasks that were lost in part (control: random neurons)",
        "above 0 and above the control; below either contradicts",
        forgetting.pruned,
    ),
    Claim(
        "Conjugate prompts bring lost answers back",
        "arXiv 2309.10105",
        "share of the loss that comes back, net of what goes wrong there, on the prompts that the "
        "base knows, by the prompts chosen on the other half (control: another wording with the "
        "plain prompts' score, 0)",
        "above 0.5, with more right answers in all; fewer than half of the lost ones right "
        "contradicts",
        forgetting.conjugate,
    ),
    Claim(
        "A point between base and fine-tuned model keeps both tasks (WiSE-FT)",
        "arXiv 2109.01903",
        "rise of another task's score, point and task chosen on other prompts (control: the "
        "fine-tuned task's change)",
        "above 0, where the fine-tuned task certainly loses less than 0.05; a fall, or a certain "
        "loss of more, contradicts",
        forgetting.path,
    ),
    Claim(
        "A smaller change gives back forgetting at no cost to the task",
        "arXiv 2109.01903",
        "share of the rise of the pre-training loss that is given back at the alpha chosen on the "
        "other half of the prompts and texts",
        "above 0, where the task's score certainly falls by less than 0.05",
        repair.smaller,
    ),
    *(
        Claim(
            f"{what} gives back more than a smaller change does",
            source,
            "by how much lower the pre-training loss is than at the chosen alpha, nats a token, "
            "strengths chosen on the other half of the prompts and texts (control: what that alpha "
            "gives back)",
            "above 0, where the task's score certainly falls by less than 0.05",
            repair.beyond(arm),
        )
        for what, source, arm in REPAIRS
    ),
)

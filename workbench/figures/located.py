"""The figures of patching as data: how each is read, and when it misleads."""

from __future__ import annotations

from workbench.figures import lenses, patching
from workbench.figures.drawing import Drawing, has
from workbench.results.result import Result


def _grouped(result: Result) -> bool:
    return bool((result.table["component"] == "group").any())


DRAWINGS = (
    Drawing(
        patching.CROSS,
        "layers",
        "Patching one model into the other, layer by layer",
        patching.by_layer,
        "The share of what separates the two models on the same prompts that is recovered when one "
        "runs with the other's activations at a layer (coloured) or with its parameters (black); "
        "bands: 95% intervals over prompts. Dashed grey: the mean over layers of the first curve, "
        "which a layer picked at random gives. KRS: the same by squared error on the logits of "
        "what the base says. A patch of a run's own activations changes nothing, to the last bit.",
        "Behind the place of a change every stream recovers all of it, whether anything was "
        "changed there or not: only the parameters localise. Crosses (at the edge where they lie "
        "beyond it): another prompt's activations. Where they recover as much, the patch carries "
        "what all prompts share and not this answer: compare agreement and score.",
        companion=patching.RESTORE,
        alone=True,
        applies=lambda result, *others: patching.streams(result),
    ),
    Drawing(
        patching.CROSS,
        "heads",
        "Patching one model's heads into the other",
        patching.layer_head,
        "Share of the gap between the two models recovered by each head alone (red), or taken the "
        "other way (blue); beside each member the mean over its heads, which is what a random one "
        "gives.",
        "Heads that work together recover little alone. Where the two models hardly differ on "
        "these prompts every share is noise: the notes of the result say so.",
        applies=lambda result, *others: patching.headed(result) and not _grouped(result),
    ),
    Drawing(
        patching.CROSS,
        "groups",
        "Patching the circuit's groups across the pair",
        patching.by_group,
        "Share of the gap between base and member recovered by each group of heads of the base's "
        "circuit at its own position, with 95% intervals over prompts; grey: random groups of as "
        "many heads at the same position.",
        "The circuit was found on other prompts of the same kind. A group may recover a gain that "
        "arises elsewhere and only passes through it.",
        applies=lambda result, *others: _grouped(result),
    ),
    Drawing(
        patching.ACTIVATION,
        "positions",
        "Where the answer comes from",
        patching.layer_position,
        "Clean activations put into the corrupt run, at each position and layer: 0 leaves the "
        "corrupt answer, 1 gives the clean one. The base, then every member. Beside each name what "
        "a random place recovers; a patch of a run's own activations changes nothing.",
        "It shows where information passes, not where it is made; a corrupt prompt that changes "
        "several things at once mixes their paths.",
        applies=lambda result, *others: patching.streams(result),
    ),
    Drawing(
        patching.ACTIVATION,
        "heads",
        "Which heads carry it to the answer",
        patching.layer_head,
        "The same for single heads at the last token, layers upwards.",
        "Backup heads hide a head's part when it is replaced, and heads that act only together "
        "show little alone.",
        applies=lambda result, *others: patching.headed(result),
    ),
    Drawing(
        patching.CIRCUIT,
        "faithfulness",
        "Does the base's circuit do the member's work?",
        patching.faithfulness,
        "Score of the circuit's heads alone, each kept at its group's position (where asked for, "
        "at every token) and all other heads and tokens replaced by their mean, over the whole "
        "model's score: the base's circuit and the member's own, each in both models. Numbers: "
        "heads in the circuit; grey: random circuits of as many heads.",
        "A circuit of most heads is faithful whatever it holds: compare with the random one. Means "
        "over prompts keep what all prompts share.",
        applies=has("faithfulness:score"),
    ),
    Drawing(
        patching.CIRCUIT,
        "overlap",
        "Is it the same circuit?",
        patching.overlap,
        "Heads in common between the circuits found in base and member, whole and group by group, "
        "against the middle 95% of random circuits of the same sizes.",
        "Both circuits are cut off at a threshold: heads near it come and go by chance. The same "
        "heads may do another thing, and other heads the same.",
        applies=has("jaccard"),
    ),
    Drawing(
        patching.CIRCUIT,
        "paths",
        "How the circuit was found",
        patching.paths,
        "Change of the logit difference when a head is corrupted on its way to one group of "
        "receivers alone (value fetchers: the logits), all later heads frozen. Blue: the head "
        "supports the answer. Grey: not before the receivers.",
        "A head's total effect is not the sum of its paths, and receivers that were not found have "
        "no senders.",
        applies=has("logit_change"),
    ),
    Drawing(
        patching.MASK,
        "masks",
        "Which heads carry the information",
        patching.masks,
        "Learned masks: 1 where a head's output must be taken from the source prompt for its "
        "information to appear in the answer. Beside each name the score of the rounded mask on "
        "pairs it was not learned on, and of random masks of its size.",
        "Several masks may do equally well, and one of them is found.",
        applies=patching.few_units,
    ),
    Drawing(
        lenses.LENS,
        "layers",
        "The answer at every layer",
        lenses.lens_by_layer,
        "Log-probability of the answer's first token when the stream behind every layer is read "
        "through the model's own final norm and head: tuned in colour, base dashed, bands 95% "
        "intervals over prompts; -1 is the embedding. Last panel: KL(tuned || base); dotted: the "
        "base against itself.",
        "Early streams need not be written in the head's terms, so a low value there does not mean "
        "that the answer is not yet known. A changed head or final norm moves every layer: the "
        "table then also holds the tuned stream read through the base's head.",
    ),
    Drawing(
        lenses.PATTERNS,
        "heads",
        "Heads that look elsewhere",
        lenses.pattern_differences,
        "Total variation distance between tuned and base attention patterns at the last prompt "
        "token, mean over prompts, layers upwards; 0 is the base against itself, 1 no key in "
        "common. One colour scale for all members.",
        "A pattern also changes when anything before the head did: a bright head need not have "
        "changed itself. Keys whose values are small, above all the first token, take attention "
        "without effect.",
    ),
    Drawing(
        lenses.PATTERNS,
        "example",
        "One prompt, where the last token looks",
        lenses.pattern_example,
        "Attention of the last token over the tokens of one prompt, base grey, tuned in colour, in "
        "the head whose pattern changed most on average (first four members).",
        "One prompt, and of those kept the one that changes most: an illustration, not an average. "
        "Members show different heads.",
        applies=has("example_tvd"),
    ),
    Drawing(
        lenses.ATTRIBUTION,
        "exact",
        "First-order effect against the exact patch",
        lenses.attribution_against_exact,
        "Share of the clean - corrupt gap (for tuned into base: of the tuned - base gap) as the "
        "gradient predicts it against the patch itself: filled the strongest entries, hollow "
        "random others, dashed where both are equal. Above: Spearman's rho of the strongest and of "
        "the random entries.",
        "The strongest are chosen by the prediction, so that its errors among them lean outwards, "
        "and places whose effect the gradient misses (saturated softmaxes) are mostly not shown.",
        applies=has("exact"),
    ),
    Drawing(
        lenses.ATTRIBUTION,
        "heads",
        "Heads by attribution",
        lenses.attribution_by_head,
        "First-order effect of every head's output (z), summed over the named positions, layers "
        "upwards, red towards the clean answer; the base, each member, and each member's "
        "activations put into the base on the same prompts.",
        "'Into base' is a share of another gap than the other maps, so compare places and not "
        "depths of colour. Effects of several heads add up here although their patches do not.",
        applies=lambda result, *others: bool((result.table["component"] == "z").any()),
    ),
)

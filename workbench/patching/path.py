"""Path patching: what acts on the answer directly, or through other heads' queries, keys or values,
or through an MLP?

1. Run clean and corrupt prompts, keeping every head's z and what else sends.
2. Per sender (a head, an MLP, or the embedding): the clean run with what it sends from the corrupt
   run and every later head frozen to its clean z, while the MLPs react; keep what the receivers
   then get.
3. The clean run again with only what the receivers got in step 2, or, of an MLP, made of it. Where
   the logits receive, step 2 is the run itself.

    effect = mean((p_patched - p_clean) / p_clean),   p: probability of the right answer

(Wang et al. 2022, arXiv 2211.00593; Goldowsky-Dill et al. 2023, arXiv 2304.05969; the score as in
Prakash et al. 2024, arXiv 2402.14811). A negative effect means that the sender supports the answer.
With all later heads frozen nothing moves between tokens: what a sender gives at a position, the
receivers are given there, and only the last one acts on the logits of a one-token answer. A key or
value that changed at that position may be looked at from any later one; `receiver_position` says
from which, so that a path is, for example, sender at the subject -> value at the subject -> read at
the last token. A place from where nothing is looked at gives 0, up to rounding. It misleads if
p_clean is near 0 (compare it with the change of the logit difference) and if the corrupt prompts
change more than one thing at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pandas as pd

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.models.sides import named_dtype
from workbench.patching.activation import KNOWN, SIDES, asked, partners, require_sides
from workbench.patching.metrics import Asked, metric_of
from workbench.patching.patches import Position
from workbench.patching.path_effects import effects
from workbench.patching.path_ends import End, Part, Receivers, looked_from
from workbench.patching.per_prompt import stored
from workbench.patching.places import MEAN, PAIR, placed, require_one_run
from workbench.patching.places import asked as places_of
from workbench.patching.replacements import (
    CORRUPTED,
    Replacement,
    Running,
    With,
    require_with,
)
from workbench.patching.sweep import Side
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.tasks import PromptSet
from workbench.tasks.batching import pad_id

KEY = "patching.path"


@analysis(
    "Which heads act on the logits directly, or through other heads or MLPs?",
    paper="arXiv 2211.00593",
    example="--prompts boxes.jsonl --receivers 3.0,3.2 --part q",
    plans=True,
    few={"prompts": 16, "corrupted": 16},
)
def path(
    pair: CheckpointPair,
    prompts: PromptSet,
    *,
    corrupted: PromptSet | None = None,
    receivers: Sequence[End] | Literal["logits"] = "logits",
    part: Part = "v",
    position: Position = -1,
    receiver_position: Position = None,
    senders: Sequence[End] | None = None,
    metric: Asked | None = None,
    with_: With = "corrupted",
    sides: Sequence[str] = SIDES,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
    large: bool = False,
) -> Result:
    """Measure the effect of every sender on the answer, through the receivers alone.

    prompts, corrupted, metric, sides, dtype, large: as in `activation`. with_: what stands for what
    a sender sends, as in `activation`. receivers: "logits", or heads (3.1, as a pair or as text)
    whose `part` receives (a key-value head, for k and v, if several queries share one) and MLPs
    (4.mlp), whose input does; "3.1@subject" is a head that looks from a place of its own. part:
    which input of the receiving heads changes: q, k or v. position: the token of the sender, and of
    what receives; None for every token. receiver_position: the tokens (-1, "subject:last", 2..5)
    from which the receiving heads look, their output being as in the clean run at all others (a
    query looks from its own); None for every token; -1 stands for all tokens that predict an
    answer's. senders: heads (3.1), MLPs (2.mlp) and embedding; None for every head before the last
    receiver.

    The command line takes 16 prompts of a file, with --full all of them.

    Returns a Result with columns side, component (head, mlp, embedding), layer, head, position,
    arm, metric. Arm "patch": `effect` (mean relative change of the answer's probability, over
    prompts whose probability is not below e^-20), `logit_change` (of the logit difference) and
    `change:METRIC` (of another metric); "shuffled": with what is sent in another prompt's corrupt
    run; "random": what a random sender of that component gives. 95% intervals over prompts, n. The
    notes state the cost in forward passes. tensors: as in `activation`. Raises WorkbenchError for
    ends a model does not have, for senders that come to no receiver, and for a receiver_position of
    the logits, which are where the answer is.
    """
    require_with(with_, KNOWN)
    require_sides(sides)
    prompts = asked(prompts)
    words = pair.base.tokenizer()
    judge = metric_of(metric, words)
    clean, dirty, corrupted = partners(words, prompts, corrupted, seed)
    if with_ != CORRUPTED:
        require_one_run(places_of([position]), with_)
    looks = [receiver_position, *looked_from(receivers)]
    _require_one_place(looks)
    clean, dirty = placed(places_of([position]), clean, dirty)
    clean, _ = placed(places_of(looks), clean, clean)
    tables, notes, tensors = [], [], {}
    with pair.models(device, named_dtype(dtype)) as run:
        for side in sides:
            model, other = (run.base, run.tuned)[:: 1 if side == "base" else -1]
            stands = None
            if with_ != CORRUPTED:
                how = Running(pad_id(words), batch_size, device)
                ends = Receivers.of(run.layout, receivers, part, position, receiver_position)
                sites = {site.whole for site in ends.senders(run.layout, senders)}
                known = (with_, model, clean, sites, how)
                stands = Replacement.of(*known, giver=(other, clean), seed=seed)
            made = effects(
                *(Side(model, clean), Side(model, dirty), words),
                receivers=receivers,
                part=part,
                position=position,
                receiver_position=receiver_position,
                senders=senders,
                metric=judge,
                replaced=stands,
                batch_size=batch_size,
                seed=seed,
                device=device,
                large=large,
            )
            tables.append(made.table.assign(side=side))
            for (arm, name), values in made.values.items():
                tensors |= stored(side, arm, {name: values})
            notes.append(f"{pair.name}, {side}: cost {made.forwards:.1f} plain forward passes.")
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "member", pair.name)
    parameters = {
        "prompts": describe(prompts), "corrupted": describe(corrupted), "part": part,
        "receivers": describe(receivers), "position": position,
        "receiver_position": receiver_position, "senders": describe(senders),
        "sides": list(sides), "with_": with_, "metric": describe(metric),
    }  # fmt: skip
    known = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = pair.provenance(parameters=parameters, **known)
    return finished(KEY, table, provenance.with_notes((*provenance.notes, *notes)), tensors)


def _require_one_place(looks: Sequence[Position]) -> None:
    """Raises for a place of two runs or for a mean, where heads look from a token of the prompt."""
    for place in looks:
        if isinstance(place, str) and (PAIR in place or place.endswith(MEAN)):
            raise WorkbenchError(
                f"Expected receiver_position to be tokens of the prompt itself, found {place!r}; "
                "give a named place, a range (2..5) or a count (-1)."
            )

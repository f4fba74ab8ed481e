"""Another answer to one question, written into exactly m entries of one matrix, without training.

In the last block the MLP's neurons a(x) at the last token already tell what is asked. Ridge
regression on q of them finds weights w with w . a = 1 behind the question's wordings and near 0
behind any other; adding c d w^T to the output matrix, on these q columns alone, then moves the
logits from the old answer to the new one there, d being the difference of the two rows of the head
behind the last norm's gain. A rank-one edit of a key and a value as in Meng et al. 2022 (arXiv
2202.05262v5), with the key found on few neurons so that the number of entries, q times the width of
the model, is known. It says nothing of how training would have stored the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.lab.planted import HEAD, Planted, Truth, read
from workbench.loaders import Checkpoint
from workbench.tasks.prompts import Prompt

NORM = "model.norm.weight"
RIDGE = 0.1  # added to the squares of activations, which are about one each
MARGIN = 1.5  # times the size that turns the last of the wordings over


def fact_edit(
    base: str | Path,
    asked: Sequence[Prompt],
    others: Sequence[Prompt],
    answer: str,
    *,
    neurons: int = 16,
) -> Planted:
    """A base that answers `asked` by `answer` instead of their common target, a change of rank one
    in neurons * width entries of the last block's MLP output matrix.

    base: a Llama-like folder whose head is a matrix of its own. asked: one question in several
    wordings and contexts. others: whatever shall be answered as before. answer: one token. Raises
    WorkbenchError where the questions have several answers or there is no such matrix.
    """
    targets = {prompt.target for prompt in asked}
    if len(targets) != 1:
        raise WorkbenchError(f"Expected one question with one answer, found {sorted(targets)}.")
    side = Checkpoint.parse(base)
    model, words = side.load(dtype=torch.float32), side.tokenizer()
    state = read(base)
    last = f"model.layers.{_depth(state) - 1}.mlp.down_proj"
    if HEAD not in state or NORM not in state or f"{last}.weight" not in state:
        raise WorkbenchError(
            f"Expected {HEAD}, {NORM} and {last}.weight in {base}; give a Llama-like base."
        )
    own, lengths = activations(model, words, last, asked)
    rest, _ = activations(model, words, last, others)
    picks, weights = key(own, rest, neurons)
    head, gain = state[HEAD].double(), state[NORM].double()
    new, old = (_token(words, word) for word in (answer, targets.pop()))
    value = gain * (head[new] - head[old])
    value /= value.norm()
    # Adding s d to the residual moves the two logits apart by s |d'| / its root mean square.
    apart = _margins(model, words, asked, old, new) * lengths
    size = MARGIN * float((apart / (gain * (head[new] - head[old])).norm()).max())
    delta = torch.zeros_like(state[f"{last}.weight"], dtype=torch.float64)
    delta[:, picks] = size * torch.outer(value, weights)
    name = f"{last}.weight"
    changed = dict(state)
    changed[name] = (state[name].double() + delta).to(state[name].dtype)
    entries = int((changed[name] != state[name]).sum())
    expected = {name: {"entries": entries, "rank": 1, "norm": float(delta.norm())}}
    return Planted(changed, Truth("fact", (name,), 0, {"neurons": neurons}, expected))


def activations(
    model: Any, words: Any, module: str, prompts: Sequence[Prompt]
) -> tuple[Float[Tensor, "prompts neurons"], Float[Tensor, " prompts"]]:
    """(what goes into a linear layer at the last token, the root mean square of the last block's
    output there), float64."""
    rows, scales = [], []
    layer, norm = model.get_submodule(module), model.get_submodule(NORM.removesuffix(".weight"))
    hooks = [
        layer.register_forward_pre_hook(lambda _, given: rows.append(given[0][0, -1].double())),
        norm.register_forward_pre_hook(
            lambda _, given: scales.append(given[0][0, -1].double().square().mean().sqrt())
        ),
    ]
    try:
        with torch.no_grad():
            for prompt in prompts:
                model(input_ids=words(prompt.prompt, return_tensors="pt").input_ids)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(rows), torch.stack(scales)


def key(
    own: Float[Tensor, "asked neurons"], rest: Float[Tensor, "others neurons"], count: int
) -> tuple[Tensor, Float[Tensor, " count"]]:
    """(the neurons, their weights w) with w . a near 1 for `own` and near 0 for `rest`, both sides
    counting alike; the neurons that matter least are dropped, half of them at a time."""
    both = torch.cat([own, rest])
    wanted = torch.cat([torch.ones(len(own)), torch.zeros(len(rest))]).double()
    heavy = torch.cat([torch.full((len(own),), len(rest) / len(own)), torch.ones(len(rest))])

    def solved(picks: Tensor) -> Tensor:
        part = both[:, picks]
        square = part.T @ (heavy.double()[:, None] * part)
        ridge = RIDGE * torch.eye(len(picks), dtype=torch.float64)
        return torch.linalg.solve(square + ridge, part.T @ (heavy * wanted))

    picks = torch.arange(both.shape[1])
    while len(picks) > count:
        matters = solved(picks).abs() * both[:, picks].std(0)
        picks = picks[matters.argsort(descending=True)[: max(count, len(picks) // 2)]]
    return picks, solved(picks)


def _margins(
    model: Any, words: Any, prompts: Sequence[Prompt], old: int, new: int
) -> Float[Tensor, " prompts"]:
    """By how much the logit of the old answer is above that of the new one."""
    with torch.no_grad():
        found = [
            model(input_ids=words(p.prompt, return_tensors="pt").input_ids).logits[0, -1].double()
            for p in prompts
        ]
    return torch.stack([one[old] - one[new] for one in found])


def _token(words: Any, answer: str) -> int:
    ids = words(answer, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise WorkbenchError(f"Expected an answer of one token, found {answer!r} of {len(ids)}.")
    return ids[0]


def _depth(state: Any) -> int:
    layers = [name.split(".")[2] for name in state if name.startswith("model.layers.")]
    return 1 + max((int(one) for one in layers if one.isdigit()), default=-1)

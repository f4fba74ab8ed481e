"""Methods of others, entered as anyone's is: one function each.

The norm of a matrix's change is the trivial one that every method must beat; PEFT's
`reduce_intruder_dimension` tells how many intruders it would take out of each matrix of a LoRA
(Shuttleworth et al. 2024, arXiv 2410.21228); TransformerLens' `attribution_patch` scores nodes and
edges of one model by its gradients (Syed, Rager & Conmy 2023, arXiv 2310.10348).
"""

from __future__ import annotations

import re
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from workbench.errors import WorkbenchError
from workbench.lab.known import Place
from workbench.loaders import load_pair
from workbench.models.transformer_lens import bridge
from workbench.scoreboard.method import Answer, Method
from workbench.tasks.prompts import PromptSet

Scores = dict[str, dict[Place, float]]
NORM = "norm of the change"
COUNTED = re.compile(r": Intruders: (\d+)")


def norm(base: Path, tuned: Path, prompts: PromptSet) -> Scores:
    """|W_tuned - W_base|_F of every matrix of the blocks, and of a layer all of its matrices
    together."""
    matrices: dict[Place, float] = {}
    layers: dict[Place, float] = defaultdict(float)
    for delta in load_pair(base, tuned).deltas():
        layer, component = delta.site.layer, delta.site.component
        if layer is not None and delta.change.ndim == 2:
            size = float(delta.change.norm())
            matrices[layer, component] = size
            layers[(layer,)] = (layers[(layer,)] ** 2 + size**2) ** 0.5
    return {"matrix": matrices, "layer": {**layers}}


def peft_intruders(base: Path, tuned: Path, prompts: PromptSet) -> Answer:
    """How many intruders PEFT takes out of each matrix. It only takes a LoRA of a model, so every
    changed matrix is handed to it as a linear layer, and its change as a LoRA of full rank,
    exactly: one factor is the identity and the other the change."""
    import peft
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    deltas = [
        delta
        for delta in load_pair(base, tuned).deltas()
        if delta.site.layer is not None and delta.change.ndim == 2
    ]
    found: dict[Place, float] = {(d.site.layer, d.site.component): 0.0 for d in deltas}
    for delta in (one for one in deltas if one.change.any()):
        out, into = delta.base.shape
        rank = min(out, into)
        layer = torch.nn.Sequential(torch.nn.Linear(into, out, bias=False))
        layer[0].weight.data = delta.base.float().clone()
        config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"])
        wrapped: Any = peft.get_peft_model(layer, config)  # pyright: ignore[reportArgumentType]
        factors = wrapped.base_model.model[0]
        whole, change = torch.eye(rank), delta.change.float()
        first, second = (whole, change) if into <= out else (change, whole)
        factors.lora_A["default"].weight.data = first.clone()
        factors.lora_B["default"].weight.data = second.clone()
        said: list[str] = []
        reduce_intruder_dimension(wrapped, logging_sink=said.append)
        counts = [int(match[1]) for line in said if (match := COUNTED.search(line))]
        found[delta.site.layer, delta.site.component] = float(sum(counts))
    return Answer({"matrix": found}, finds=any(found.values()))


def lens_attribution(
    base: Path, tuned: Path, prompts: PromptSet, *, corrupted: PromptSet | None
) -> Scores:
    """TransformerLens' first-order effects of heads and of edges in the tuned model, clean against
    corrupt, summed over positions."""
    from transformer_lens.tools.analysis.attribution_patching import (
        EdgeAttributionConfig,
        attribution_patch,
    )

    if corrupted is None:
        raise WorkbenchError("Attribution contrasts two prompts; there are no corrupt ones.")
    pair = load_pair(base, tuned)
    words = pair.base.tokenizer()
    model = bridge(pair.tuned.load("cpu"), words, own=True)
    heads: dict[Place, float] = defaultdict(float)
    links: dict[Place, float] = defaultdict(float)
    edges = EdgeAttributionConfig(granularity="edge")
    for clean, dirty in zip(prompts, corrupted, strict=True):
        right, wrong = (
            words(text, add_special_tokens=False)["input_ids"][0]
            for text in (clean.target, clean.foils[0])
        )
        first, second = (torch.tensor([words(p.prompt)["input_ids"]]) for p in (clean, dirty))
        found = attribution_patch(model, first, second, partial(_difference, right, wrong), edges)
        for node, score in found.node_scores.items():
            if node.kind == "attn_head_out":
                heads[node.layer, node.head] += score
        for (sender, receiver), score in found.edge_scores.items():
            links[_named(sender), _named(receiver)] += score
    return {
        "answering head": {place: abs(score) for place, score in heads.items()},
        "edge": {place: abs(score) for place, score in links.items()},
    }


def _difference(right: int, wrong: int, logits: torch.Tensor) -> torch.Tensor:
    return logits[0, -1, right] - logits[0, -1, wrong]


def _named(node: Any) -> str:
    """A node of TransformerLens as the table of `patching.attribution` calls it."""
    names = {
        "embed": "embedding", "attn_head_out": f"{node.layer}.z.h{node.head}",
        "mlp_out": f"{node.layer}.mlp_out", "mlp_in": f"{node.layer}.mlp", "logits": "logits",
    }  # fmt: skip
    return names.get(node.kind, f"{node.layer}.{node.kind[0]}.h{node.head}")


METHODS = (
    Method(NORM, norm, ("matrix", "layer"), finds=False, decides=(), source="trivial"),
    Method("PEFT intruders", peft_intruders, ("matrix",), decides=(), source="PEFT"),
    Method(
        "TransformerLens attribution", lens_attribution, ("answering head", "edge"),
        finds=False, decides=(), source="TransformerLens",
    ),
)  # fmt: skip

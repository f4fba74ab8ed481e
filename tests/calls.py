"""Every analysis of the catalogue as one cheap call on a tiny pair, for what must hold of all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

import workbench as wb
from tests.patching.dictionaries import drawn, saved
from workbench.lab import shipped
from workbench.results.result import Result
from workbench.tasks import Prompt, PromptSet, desiderata, facts, off_by_one, permutation, world

SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
    "attn_implementation": "eager",
}  # fmt: skip
FOLDER = tempfile.TemporaryDirectory()  # of what calls read beside the pair


def write_pair(folder: Path) -> wb.CheckpointPair:
    """A tiny Llama and a full fine-tune of it, which read the small world's words. The same bits on
    every machine: of numpy's frozen stream, rounded."""
    from transformers import LlamaConfig, LlamaForCausalLM

    words = shipped.tokenizer()
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **SHAPE, **ends)).eval()
    for seed, (side, scale) in enumerate((("base", 0.2), ("tuned", 0.05))):
        drawn = np.random.RandomState(seed)
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                noise = torch.from_numpy(drawn.standard_normal(tuple(parameter.shape)))
                if side == "base":
                    parameter.fill_(1.0 if "norm" in name else 0.0)
                if side == "tuned" or "norm" not in name:
                    parameter += (scale * noise * 2**14).round() / 2**14
        model.save_pretrained(folder / side)
        words.save_pretrained(folder / side)
    return wb.load_pair(folder / "base", folder / "tuned")


def steps(n: int) -> PromptSet:
    """The question names a number, four steps name others; the answer is the last."""
    made = []
    for i in range(n):
        told = [f" step {k} : holds {i + 2 * k + 5}" for k in range(1, 5)]
        text = " .".join([f"inventory : {i} coins", *told, " Say"])
        made.append(Prompt(str(i), text, f" {i + 13}"))
    return PromptSet("numbers", tuple(made))


@dataclass(frozen=True)
class Asked:
    """What the analyses are asked of: n prompts of each kind, of unequal lengths."""

    n: int

    @cached_property
    def prompts(self) -> PromptSet:
        """Boxes, of three and of four in turn."""
        each = [wb.tasks.boxes(self.n, seed=3, split="test", count=count) for count in (3, 4)]
        mixed = [each[i % 2].prompts[i] for i in range(self.n)]
        return PromptSet("boxes", tuple(replace(p, id=str(i)) for i, p in enumerate(mixed)))

    @cached_property
    def others(self) -> PromptSet:
        return facts(self.n, seed=1, split="test")

    @cached_property
    def lessons(self) -> PromptSet:
        return wb.tasks.boxes(6, seed=5, split="train", count=3)

    @cached_property
    def texts(self) -> list[str]:
        return [prompt.text for prompt in self.others]

    @cached_property
    def conjugates(self) -> dict[str, PromptSet]:
        return {"permuted": permutation(world.OBJECTS)(self.prompts)}


@cache
def _dictionary(width: int) -> str:
    """A random sparse dictionary of the stream behind layer 1, in a folder of this process."""
    return saved(Path(FOLDER.name) / f"sae-{width}", drawn(width, 2 * width))


Call = Callable[..., Result]


def _verdict(pair: wb.CheckpointPair, own: Asked, **run: Any) -> Result:
    parts = [CALLS[f"forgetting.{name}"](pair, own, **run) for name in ("revive", "conjugate")]
    return wb.forgetting.verdict(pair, own.prompts, results=parts, task=own.others, **run)


# key -> (pair, what is asked, batch_size=, device=) -> Result
CALLS: dict[str, Call] = {
    "spectral.intruders": lambda p, a, device="cpu", **_: wb.spectral.intruders(
        p, k=4, device=device
    ),
    "spectral.delta_spectrum": lambda p, a, device="cpu", **_: wb.spectral.delta_spectrum(
        p, device=device
    ),
    "spectral.similarity": lambda p, a, device="cpu", **_: wb.spectral.similarity(p, device=device),
    "spectral.explained": lambda p, a, **run: wb.spectral.explained(
        p, a.prompts, others=[a.others], **run
    ),
    "spectral.scale": lambda p, a, batch_size=0, **run: wb.spectral.scale_intruders(
        p, a.prompts, texts=a.texts, lambdas=(0.0,), arms=("top", "random"), eps=0.9, **run
    ),
    "forgetting.retention": lambda p, a, **run: wb.forgetting.retention(
        p, [a.prompts], texts=a.texts, **run
    ),
    "forgetting.interpolate": lambda p, a, **run: wb.forgetting.interpolate(
        p, a.prompts, [a.others], alphas=(0.0, 0.4, 1.0), **run
    ),
    "forgetting.knowledge": lambda p, a, **run: wb.forgetting.knowledge(
        p, a.prompts, examples=a.lessons, sets=2, shots=1, samples=2, between=" . ", **run
    ),
    "forgetting.kinds": lambda p, a, **run: wb.forgetting.kinds(p, a.prompts, **run),
    "forgetting.conjugate": lambda p, a, **run: wb.forgetting.conjugate(
        p, a.prompts, a.conjugates, task=a.others, **run
    ),
    "forgetting.probe": lambda p, a, **run: wb.forgetting.probe(
        p, a.prompts, label="boxes", folds=2, basis="vocabulary", k=4, **run
    ),
    "forgetting.prune": lambda p, a, **run: wb.forgetting.prune(
        p, a.prompts, a.others, shares=(0.02, 0.1), random=1, **run
    ),
    "forgetting.revive": lambda p, a, **run: wb.forgetting.revive(
        p, a.prompts, a.lessons, steps=(1, 2), runs=1, **run
    ),
    "forgetting.sharpness": lambda p, a, **run: wb.forgetting.sharpness(
        p, a.prompts, sizes=(0.01,), random=1, **run
    ),
    "forgetting.verdict": _verdict,
    "behaviour.tokens": lambda p, a, **run: wb.behaviour.tokens(p, a.prompts, show=1, **run),
    "behaviour.generate": lambda p, a, **run: wb.behaviour.generate(
        p, n=a.n, length=6, rounds=2, **run
    ),
    "behaviour.coverage": lambda p, a, **run: wb.behaviour.coverage(
        p, a.prompts, samples=3, **run
    ),
    "behaviour.critical": lambda p, a, **run: wb.behaviour.critical(
        p, replace(a.prompts, scorer=wb.tasks.Generation(length=4, extract=r"\S+")), most=1, **run
    ),
    "behaviour.gain": lambda p, a, **run: wb.behaviour.gain(
        p, a.prompts, a.lessons[:2], checked=1, directions=1, **run
    ),
    "behaviour.advantage": lambda p, a, **run: wb.behaviour.advantage(
        p, steps(a.n), between=" .", **run
    ),
    "behaviour.reliance": lambda p, a, **run: wb.behaviour.reliance(
        p, a.prompts, a.prompts, premises=("correct object",), **run
    ),
    "behaviour.faithfulness": lambda p, a, **run: wb.behaviour.faithfulness(
        p, steps(a.n), between=" .", mistake=off_by_one, shares=(0.0, 0.5, 1.0), **run
    ),
    "tuco.contribution": lambda p, a, **run: wb.tuco.contribution(
        p, {"boxes": a.prompts, "facts": a.others}, tokens=1, **run
    ),
    "tuco.scaling": lambda p, a, **run: wb.tuco.scaling(
        p, a.prompts, alphas=(0.0, 0.9), texts=a.texts, **run
    ),
    "patching.cross_model": lambda p, a, **run: wb.patching.cross_model(
        p, a.prompts, sites=("resid_post", "mlp_out"), positions=(-1,), controls=1, **run
    ),
    "patching.restore": lambda p, a, **run: wb.patching.restore(p, a.prompts, **run),
    "patching.lens": lambda p, a, **run: wb.patching.lens(p, a.prompts, top=1, **run),
    "patching.das": lambda p, a, batch_size=0, **run: wb.patching.das(
        p, desiderata("object value", a.n, seed=0, count=4), k=2, layers=(1,), steps=2, random=1,
        batch_size=4, **run
    ),
    "patching.difference": lambda p, a, **run: wb.patching.difference(
        # As many as four quarters need, of which one text has none.
        p, (a.texts * 8)[: 8 if a.n > 1 else 1], k=2, length=3, top=2, random=2, **run
    ),
    "patching.contributions": lambda p, a, **run: wb.patching.contributions(p, a.prompts, **run),
    "patching.drift": lambda p, a, **run: wb.patching.drift(
        p, a.prompts, rewordings=a.prompts, **run
    ),
    "patching.dictionary": lambda p, a, **run: wb.patching.dictionary(
        p, a.prompts, _dictionary(p.base.config["hidden_size"]), shown=2, **run
    ),
    "patching.steer": lambda p, a, **run: wb.patching.steer(
        p, a.prompts, layers=(1,), scales=(0.0, 1.0), random=2, shown=1, length=3, **run
    ),
    "patching.knockout": lambda p, a, **run: wb.patching.knockout(
        p, a.prompts, arms=("mean", "resample") if a.n > 1 else ("mean",), **run
    ),
    "patching.patterns": lambda p, a, **run: wb.patching.patterns(
        p, a.prompts, examples=1, **run
    ),
    "patching.activation": lambda p, a, **run: wb.patching.activation(
        p, a.prompts, sites=("resid_post",), positions=(-1,), controls=1, **run
    ),
    "patching.attribution": lambda p, a, **run: wb.patching.attribution(
        p, a.prompts, positions=(-1,), exact=3, **run
    ),
    "patching.circuit": lambda p, a, **run: wb.patching.circuit(
        p, a.prompts, most=2, random=2, **run
    ),
    "patching.edge_circuits": lambda p, a, **run: wb.patching.edge_circuits(
        p, a.prompts, fractions=(0.1, 1.0), steps=1, random=1, **run
    ),
    "patching.groups": lambda p, a, **run: wb.patching.groups(p, a.prompts, most=2, **run),
    "patching.mask": lambda p, a, batch_size=0, **run: wb.patching.mask(
        p, desiderata("object value", a.n, seed=0, count=4), epochs=1, batch_size=4, **run
    ),
    "skills.localize": lambda p, a, **run: wb.skills.localize(
        p, a.prompts, others=[a.others], sparsity=(0.01, 0.3), random=1, epochs=1, **run
    ),
    "skills.alignment": lambda p, a, **run: wb.skills.alignment(
        p, a.prompts, others=[a.others], **run
    ),
    "skills.blocks": lambda p, a, **run: wb.skills.blocks(
        p, a.prompts, most=1, ranks=(1,), random=1, **run
    ),
    "skills.restore": lambda p, a, **run: wb.skills.restore(
        p, a.prompts, shares=(0.1, 0.5), random=1, **run
    ),
    "skills.compression": lambda p, a, **run: wb.skills.compression(
        p, a.prompts, ranks=(1,), sparsities=(0.1,), random=1, **run
    ),
    "skills.calibration": lambda p, a, **run: wb.skills.calibration(p, a.prompts, **run),
    "edits.repair": lambda p, a, **run: wb.edits.repair(
        # As many as two halves need, of which one prompt has none.
        p, wb.tasks.boxes(8 if a.n > 1 else 1, seed=3, split="test", count=3),
        texts=(a.texts * 8)[:8], arms=("movement",), strengths=(0.5,), **run
    ),
}  # fmt: skip

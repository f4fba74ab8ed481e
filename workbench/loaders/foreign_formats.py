"""What lies in a folder that is no checkpoint one can read, and what turns it into one.

Training tools leave shards of a run, adapters of other formats and placeholders of files where a
model is expected. Each is known by its files alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# How a Git LFS pointer begins, which stands for a file that was not fetched.
POINTER = b"version https://git-lfs"


class Kind(NamedTuple):
    """files: a pattern that some file of the folder matches. what: what the folder is. remedy: what
    makes a checkpoint of it."""

    files: re.Pattern[str]
    what: str
    remedy: str


KINDS = (
    Kind(
        re.compile(r"^(zero_pp_rank_.*|bf16_zero_pp_rank_.*|mp_rank_\d+_model_states\.pt)$"),
        "the shards of a DeepSpeed ZeRO run",
        "gather them with its zero_to_fp32.py, or save with save_16bit_model",
    ),
    Kind(
        re.compile(r"^(.*\.distcp|__\d+_\d+\.distcp)$"),
        "a distributed checkpoint of FSDP",
        "merge it with `accelerate merge-weights` or torch.distributed.checkpoint.format_utils",
    ),
    Kind(
        re.compile(r"^consolidated(\.\d+)?\.(pth|safetensors)$"),
        "a checkpoint in its publisher's own format (consolidated)",
        "convert it with the script that transformers has for its architecture",
    ),
    Kind(
        re.compile(r"^(hf_model_\d+_\d+\.pt|ft-model-.*|recipe_state\.pt)$"),
        "a checkpoint of torchtune",
        "save it with output_dir and the FullModelHFCheckpointer as safetensors",
    ),
    Kind(
        re.compile(r"^adapters\.(safetensors|npz)$"),
        "an adapter of MLX without its adapter_config.json",
        "put the config that mlx-lm wrote next to it, or fuse it with `mlx_lm.fuse "
        "--dequantize` and give the fused folder",
    ),
    Kind(
        re.compile(r"^adapter_(\d+|model)\.pt$"),
        "an adapter of torchtune without its adapter_config.json",
        "put the config that torchtune wrote next to it",
    ),
    Kind(
        re.compile(r"^pytorch_lora_weights\.(safetensors|bin)$"),
        "an adapter of diffusers, for an image model",
        "give an adapter that peft saved for a language model",
    ),
    Kind(
        re.compile(r"^adapter_model\.(safetensors|bin)$"),
        "an adapter without its adapter_config.json",
        "put the config that peft wrote next to it",
    ),
)

# How the folder of a checkpoint along a training run is called, and of which step it is.
STEP = re.compile(r"(?:checkpoint|step|global_step)[-_]?(\d+)")


def foreign(folder: Path) -> tuple[str, str] | None:
    """(what the folder is, what to do) where it is a known thing but no checkpoint."""
    names = sorted(path.name for path in folder.iterdir())
    steps = [n for n in names if STEP.fullmatch(n)]
    for kind in KINDS:
        if any(kind.files.match(name) for name in names):
            return kind.what, kind.remedy
    within = [step for step in steps if (folder / step).is_dir()]
    if within:
        return (
            f"a folder of {len(within)} checkpoints",
            f"give one of them, for example {within[-1]}, or all of them to compare --steps",
        )
    return None


def pointers(folder: Path) -> Iterator[Path]:
    """The files that stand for weights which Git LFS did not fetch."""
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".bin", ".gguf") and path.is_file():
            with path.open("rb") as file:
                if file.read(len(POINTER)) == POINTER:
                    yield path

"""What does watching a training cost? The same run with and without a watch, at its defaults.

A LoRA of rank 16 on the shipped base, or on SmolLM2-135M, in a plain loop of AdamW: so many steps
unwatched, then the same watched (every 100 steps, a twentieth of the time). Seconds of the
processor for both, which other work on the machine hardly changes, what the watch says that it
cost, and how often it measured.

    python -m benchmarks.watch --out benchmarks/results [--models family smollm2] [--steps 2000 600]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

import workbench as wb
from benchmarks.common import machine, table
from workbench.demo import FAMILY
from workbench.demo.smollm2 import smollm2_file
from workbench.integrations import Watch
from workbench.loaders import Checkpoint
from workbench.results import run_folder

STEPS = {"family": 2000, "smollm2": 600}
BATCH, LENGTH = 8, 64


def trained(base: Path, steps: int, watch: Watch | None) -> float:
    """Seconds of the processor for so many steps, without the first five, in which caches fill."""
    torch.manual_seed(0)
    model: Any = Checkpoint.parse(base).load(dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear")).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    begun = time.process_time()
    for step in range(1 - 5, steps + 1):
        if step == 1:
            begun = time.process_time()
        ids = torch.randint(3, 400, (BATCH, LENGTH))
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if watch is not None and step > 0:
            watch.step(model, step)
    if watch is not None:
        watch.finish(model, steps)
    return time.process_time() - begun


def one_model(name: str, steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="workbench-watch-") as folder:
        base = FAMILY / "base" if name == "family" else smollm2_file()
        plain = trained(base, steps, None)
        task = wb.tasks.ledger(32, seed=2, split="validation")
        watch = Watch(base, Path(folder) / "out", prompts=task, texts=task.texts)
        watched = trained(base, steps, watch)
        kept = next(iter(run_folder.load(Path(folder) / "out").values()))
        return {
            "model": name, "steps": steps, "ms_a_step": 1e3 * plain / steps,
            "unwatched_s": plain, "watched_s": watched, "slower_by": watched / plain - 1,
            "told_by_the_watch": watch.overhead, "measurements": len(kept.members),
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--models", nargs="+", choices=[*STEPS], default=[*STEPS])
    parser.add_argument("--steps", type=int, nargs="+", help="one a model")
    chosen = parser.parse_args()
    counts = chosen.steps or [STEPS[name] for name in chosen.models]
    rows = [one_model(name, n) for name, n in zip(chosen.models, counts, strict=True)]
    chosen.out.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine(), "rows": rows}
    (chosen.out / "watch.json").write_text(json.dumps(found, indent=1))
    host = found["machine"]
    lines = [
        "# Watching a training",
        "",
        f"{host['cpu']}, {host['cores']} cores, torch {host['torch']}, {host['threads']} threads, "
        f"{host['date']}. A LoRA of rank 16, {BATCH} texts of {LENGTH} tokens a step, in a loop "
        "with and without a watch at its defaults: spectrum, intruders and retention every 100 "
        "steps where a twentieth of the time allows; the first due step and the last are always "
        "measured.",
        "",
        *table(rows, [*rows[0]]),
        "",
    ]
    (chosen.out / "watch.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()

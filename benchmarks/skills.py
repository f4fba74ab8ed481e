"""One step of learning a mask, against one plain training step and against autograd through it.

    python -m benchmarks.skills --base data/family/base --tuned data/family/full --out ...

On the same prompts, batch and machine: a mask step (edit, gradient of the answers, update of S); a
full fine-tuning step (gradient of the answers, AdamW); a mask step written the obvious way, by
autograd from S through theta_0 + gamma(S) delta with torch.func.functional_call. Then choosing the
largest entries: by two histograms, against torch.topk and a sort over one concatenated vector. The
peak of memory is what the process grew by until the first masks were learned, both sides of the
pair and the change included, in models of --dtype.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.func import functional_call

from benchmarks.common import DTYPES, machine, table, wait


def each(call: Callable[[], Any], steps: int) -> float:
    """Seconds a call, after one that is not counted."""
    call()
    start = time.perf_counter()
    for _ in range(steps):
        call()
    wait()
    return (time.perf_counter() - start) / steps


def resident(device: str) -> int:
    """Bytes of this process's largest resident set so far, or of what it held on the GPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def prompts_for(words: Any, n: int) -> Any:
    from workbench import tasks

    return tasks.boxes_prompts(n, seed=0, count=4) if len(words) > 1000 else tasks.ledger(n, seed=0)


def measure(
    base: str, tuned: str, batch: int, steps: int, device: str, dtype: torch.dtype
) -> dict[str, Any]:
    """Seconds a step of each kind, and to choose 1% of the entries."""
    from workbench.loaders import load_pair
    from workbench.skills import rankings
    from workbench.skills.gradients import Teacher, learn
    from workbench.skills.graft import count, inside, top

    before = resident(device)
    pair = load_pair(base, tuned).held(device)
    model: Any = pair.base.load(device, dtype).eval()
    pair.rest_on(model)
    teacher = Teacher(pair, model, prompts_for(pair.base.tokenizer(), batch), batch)
    sites, total = inside(pair), count(pair)
    scores = rankings.movement(pair)
    start = top(scores, sites, total // 100)

    def learned(epochs: int) -> float:
        """Seconds for so many epochs of one step; a judge that is never pleased twice."""
        wait()
        begin, told = time.perf_counter(), iter(range(10**6))
        never: dict[str, Any] = {"rate": 0.3, "patience": 10**6, "seed": 0}
        learn(teacher, start, lambda masks: -next(told), epochs=epochs, **never)
        wait()
        return time.perf_counter() - begin

    # The first step also finds its scale.
    once = learned(1)
    ours = (learned(1 + steps) - once) / steps
    peak = resident(device) - before
    naive = each(autograd_step(teacher, start), max(1, steps // 3))
    plain = each(training_step(teacher), steps)
    moved = {s.name: scores(s) for s in sites}
    chosen = each(lambda: top(lambda s: moved[s.name], sites, total // 100), 3)
    flat = torch.cat([moved[s.name].flatten() for s in sites])
    return {
        "model": Path(pair.base.name).name, "N": total, "batch": batch,
        "mask_s": ours, "training_s": plain,
        "mask_over_training": ours / plain, "autograd_s": naive, "autograd_over_mask": naive / ours,
        "top_s": chosen, "topk_over_top": each(lambda: flat.topk(total // 100), 3) / chosen,
        "sort_over_top": each(lambda: flat.sort(), 1) / chosen,
        "peak_over_model": peak / sum(p.nbytes for p in model.parameters()),
    }  # fmt: skip


def training_step(teacher: Any) -> Callable[[], None]:
    """Full fine-tuning of the same parameters, AdamW."""
    places = list(range(len(teacher.rows)))
    own = [p for n, p in teacher.model.named_parameters() if "embed" not in n and "head" not in n]
    optimizer = torch.optim.AdamW(own, lr=1e-5, fused=True)

    def step() -> None:
        loss = teacher.nats(teacher.rows) / len(places)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def autograd_step(teacher: Any, start: Any) -> Callable[[], None]:
    """Autograd from S through the edited parameters, plain descent on S."""
    pair = teacher.pair
    names = {s.name: pair.delta(s) for s in teacher.sites}
    state = {
        n: torch.full(d.base.shape, -9.2, device=d.base.device).requires_grad_()
        for n, d in names.items()
    }
    shell = Answers(teacher)

    def step() -> None:
        theta = {}
        for name, delta in names.items():
            sign = 1 - 2 * start[name].float()
            gamma = start[name].float() + sign * torch.sigmoid(state[name])
            edited = delta.base + gamma * delta.change
            theta[f"model.{name}"] = edited.to(teacher.model.dtype)
        functional_call(shell, theta, ()).backward()
        with torch.no_grad():
            for own in state.values():
                assert own.grad is not None
                own -= 1e-3 * own.grad
                own.grad = None

    return step


class Answers(torch.nn.Module):
    """The mean loss of a teacher's answers as a module, whose parameters can be replaced."""

    def __init__(self, teacher: Any) -> None:
        super().__init__()
        self.model, self.teacher = teacher.model, teacher

    def forward(self) -> torch.Tensor:
        return self.teacher.nats(self.teacher.rows) / len(self.teacher.rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--tuned", required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--name", default="skills")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    row = measure(
        *(options.base, options.tuned, options.batch, options.steps),
        *(options.device, getattr(torch, options.dtype)),
    )
    about = machine(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    made = {"machine": about, "rows": [row]}
    (options.out / f"{options.name}.json").write_text(json.dumps(made, indent=1))
    lines = [
        f"Learning a mask: {about['cpu']}, {about['threads']} threads, torch {about['torch']}, "
        f"{about['device']}, {options.dtype}, {about['date']}. Seconds a step. "
        "mask_over_training below 1, the other ratios above 1: ours is faster.", "",
        *table([row], [name for name in row if "top" not in name]), "",
        *table([row], ["model", "N", "top_s", "topk_over_top", "sort_over_top"]),
    ]  # fmt: skip
    (options.out / f"{options.name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

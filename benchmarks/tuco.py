"""What does one TuCo pass cost against one plain forward pass of the tuned model?

    python -m benchmarks.tuco --out benchmarks/results

Random weights of SmolLM2's shape (or of a 7B model's, with --shape, on a GPU), saved and loaded
like any pair: a full fine-tune, a LoRA on one copy of the weights, a LoRA on the last 4 layers, and
a base read block by block from disk. Beside them the naive way for a LoRA: PEFT's own switch, which
toggles the whole model, around every block. Peaks of memory are those of a process of its own, on
a GPU those that its allocator counts. With --pair the full fine-tune and the LoRA of a folder that
benchmarks.pair wrote.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import DTYPES, SHAPES, let_go, machine, save, table, wait
from benchmarks.common import peak as most
from benchmarks.pair import write_pair

ROWS, TOKENS = 4, 128


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """Median of `repeats` runs behind one that does not count."""
    call()
    times = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(folder: Path, member: str, where: str, device: str, repeats: int) -> dict[str, Any]:
    """Plain forward, TuCo pass, and (LoRA) the naive pass, in seconds; the ratios, and the most GPU
    memory with both."""
    import workbench as wb
    from workbench.tasks.batching import Row, batch
    from workbench.tuco.contribution import decompose

    pair = wb.load_pair(folder / "base", folder / member)
    vocabulary = pair.base.config["vocab_size"]
    draw = torch.Generator().manual_seed(0)
    rows = [
        Row(str(i), torch.randint(3, vocabulary, (TOKENS,), generator=draw).tolist())
        for i in range(ROWS)
    ]
    let_go(device)
    with pair.models(device, base=where) as sides:  # pyright: ignore[reportArgumentType]
        given = batch(rows, range(ROWS), device, 0)

        def forward() -> None:
            with torch.inference_mode():
                sides.tuned(**given.inputs, use_cache=False)

        plain = seconds(forward, repeats)
        pass_ = seconds(lambda: decompose(sides, given), repeats)
        row = {
            "member": member, "base": where, "changed_layers": len(sides.changed),
            "forward_s": plain, "tuco_s": pass_, "ratio": pass_ / plain, "peak_GiB": most(device),
        }  # fmt: skip
        if member == "lora":
            naive = seconds(lambda: toggled(sides, given), 1)
            row |= {"whole_toggle_s": naive, "whole_toggle_ratio": naive / plain}
    return row


def toggled(sides: Any, given: Any) -> None:
    """The naive LoRA pass: PEFT's own whole-model switch around every block of the base."""
    from workbench.tuco.contribution import decompose

    ours = sides._blocks

    def blocks(layer: int) -> Any:
        block = sides.layout.block(layer)

        def run(args: Any, kwargs: Any) -> Any:
            with sides.tuned.disable_adapter():
                return block(*args, **kwargs)

        return run

    sides._blocks = blocks
    try:
        decompose(sides, given)
    finally:
        sides._blocks = ours


def one_model(folder: Path, device: str) -> float | None:
    """GiB of one model and a plain forward pass on the GPU."""
    import workbench as wb

    let_go(device)
    model: Any = wb.Checkpoint.parse(folder / "base").load(device)
    with torch.inference_mode():
        model(torch.arange(ROWS * TOKENS, device=device).view(ROWS, -1) % 500, use_cache=False)
    return most(device)


def peak(folder: Path, member: str) -> int:
    """MiB of this process at its largest on a CPU, from start to a TuCo pass over a few tokens;
    "base": one model and a plain forward pass."""
    import workbench as wb
    from workbench.tasks.batching import Row, batch
    from workbench.tuco.contribution import decompose

    given = batch([Row("0", list(range(3, 19)))], [0], "cpu", 0)
    if member == "base":
        model: Any = wb.Checkpoint.parse(folder / "base").load()
        with torch.inference_mode():
            model(**given.inputs, use_cache=False)
    else:
        with wb.load_pair(folder / "base", folder / member).models() as sides:
            decompose(sides, given)
    # Unlike getrusage's, this peak does not survive from the parent process.
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x.split()[1] for x in lines if x.startswith("VmHWM"))) // 1024


def peaks(folder: Path) -> dict[str, int]:
    """`peak` of each member, in processes of their own."""
    command = [sys.executable, "-m", "benchmarks.tuco", "--peak", str(folder)]
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": True}
    return {
        member: int(subprocess.run([*command, member], **options).stdout.split()[-1])
        for member in ("base", "lora", "full")
    }


CASES = (("lora", "memory"), ("full", "memory"), ("full", "disk"), ("lora-last4", "memory"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pair", type=Path, help="a folder of this shape, of benchmarks.pair")
    parser.add_argument("--peak", nargs=2, metavar=("FOLDER", "MEMBER"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peak:
        print(peak(Path(chosen.peak[0]), chosen.peak[1]))
        return
    folder = chosen.pair or Path(tempfile.mkdtemp(prefix="workbench-tuco-"))
    about = {
        "machine": machine(chosen.device), "shape": chosen.shape, "device": chosen.device,
        "dtype": chosen.dtype, "rows": ROWS, "tokens": TOKENS, "passes": [], "peak_MiB": None,
        "one_model_GiB": None,
    }  # fmt: skip
    try:
        if not chosen.pair:
            write_pair(folder, chosen.shape, getattr(torch, chosen.dtype), chosen.device)
        if chosen.device.startswith("cuda"):
            about["one_model_GiB"] = one_model(folder, chosen.device)
        for member, where in CASES[:2] if chosen.pair else CASES:
            row = measure(folder, member, where, chosen.device, chosen.repeats)
            about["passes"].append(row)
            print(json.dumps(row), flush=True)
            write(chosen.out, about)
        if chosen.device == "cpu" and not chosen.pair:
            about["peak_MiB"] = peaks(folder)
            write(chosen.out, about)
    finally:
        if not chosen.pair:
            shutil.rmtree(folder)


def memory(found: dict[str, Any]) -> str:
    """The peaks as a sentence; nothing where none was taken."""
    host, one = found["peak_MiB"], found["one_model_GiB"]
    if host:
        return (
            "Peak memory of a process of its own: one model and a forward pass "
            f"{host['base']} MiB, a LoRA pair and a TuCo pass {host['lora']} MiB "
            f"({host['lora'] / host['base']:.2f}x), a full pair {host['full']} MiB "
            f"({host['full'] / host['base']:.2f}x)."
        )
    if one:
        return f"Peak GPU memory: one model and a forward pass {one:.2f} GiB, " + ", ".join(
            f"{row['member']} and TuCo passes {row['peak_GiB']:.2f} GiB "
            f"({row['peak_GiB'] / one:.2f}x)"
            for row in found["passes"]
        )
    return ""


def write(out: Path, found: dict[str, Any]) -> None:
    """tuco-SHAPE-DEVICE.json, and .md for people, of what is known so far."""
    host = found["machine"]
    columns = ["member", "base", "changed_layers", "forward_s", "tuco_s", "ratio",
               "whole_toggle_s", "whole_toggle_ratio"]  # fmt: skip
    lines = [
        "# One TuCo pass against one plain forward pass of the tuned model",
        "",
        f"{host['cpu']}, {host['cores']} cores, {host['threads']} threads, torch {host['torch']}, "
        f"{host['device']}, {host['date']}. Random weights of shape {found['shape']}, "
        f"{found['dtype']}, {found['rows']} x {found['tokens']} tokens; medians. A TuCo pass needs "
        "no output head, which the plain forward pass includes.",
        "",
        *table(found["passes"], columns),
        "",
        memory(found),
        "",
    ]
    said = [f"{row['member']} {row['ratio']:.2f} forwards" for row in found["passes"]]
    headline = "; ".join([*said, *filter(None, [memory(found)])])
    save(out, f"tuco-{found['shape']}-{found['device']}", found | {"headline": headline}, lines)


if __name__ == "__main__":
    main()

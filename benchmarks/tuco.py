"""What does one TuCo pass cost against one plain forward pass of the tuned model?

    python -m benchmarks.tuco --out benchmarks/results

Random weights of SmolLM2's shape (or of a 7B model's, with --shape, on a GPU), saved and loaded
like any pair: a full fine-tune, a LoRA on one copy of the weights, a LoRA on the last 4 layers, and
a base read block by block from disk. Beside them the naive way for a LoRA: PEFT's own switch, which
toggles the whole model, around every block. Peaks of memory are those of a process of their own.
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

from benchmarks.common import DTYPES, SHAPES, machine, random_model, table, wait

ROWS, TOKENS = 4, 128


def write_pair(folder: Path, shape: str, dtype: torch.dtype, device: str = "cpu") -> None:
    """base, full, lora and lora-last4 under `folder`."""
    from peft import LoraConfig, get_peft_model

    layers = SHAPES[shape]["num_hidden_layers"]
    base = random_model(shape, dtype, device)
    base.save_pretrained(folder / "base")
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if ".layers." in name:
                parameter += 0.01 * torch.randn_like(parameter)
    base.save_pretrained(folder / "full")
    matrices = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    for name, where in (("lora", None), ("lora-last4", list(range(layers - 4, layers)))):
        config = LoraConfig(
            r=16, target_modules=matrices, layers_to_transform=where, init_lora_weights=False
        )
        lora: Any = get_peft_model(base, config)
        lora.save_pretrained(str(folder / name))
        base = lora.unload()


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
    """Plain forward, TuCo pass, and (LoRA) the naive pass, in seconds; and the ratios."""
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
    with pair.models(device, base=where) as sides:  # pyright: ignore[reportArgumentType]
        given = batch(rows, range(ROWS), device, 0)

        def forward() -> None:
            with torch.inference_mode():
                sides.tuned(**given.inputs, use_cache=False)

        plain = seconds(forward, repeats)
        pass_ = seconds(lambda: decompose(sides, given), repeats)
        row = {
            "member": member, "base": where, "changed_layers": len(sides.changed),
            "forward_s": plain, "tuco_s": pass_, "ratio": pass_ / plain,
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


def peak(folder: Path, member: str, device: str) -> int:
    """MiB of this process at its largest, from start to a TuCo pass over a few tokens; "base":
    one model and a plain forward pass."""
    import workbench as wb
    from workbench.tasks.batching import Row, batch
    from workbench.tuco.contribution import decompose

    given = batch([Row("0", list(range(3, 19)))], [0], device, 0)
    if member == "base":
        model: Any = wb.Checkpoint.parse(folder / "base").load(device)
        with torch.inference_mode():
            model(**given.inputs, use_cache=False)
    else:
        with wb.load_pair(folder / "base", folder / member).models(device) as sides:
            decompose(sides, given)
    if device.startswith("cuda"):
        return round(torch.cuda.max_memory_allocated() / 2**20)
    # Unlike getrusage's, this peak does not survive from the parent process.
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x.split()[1] for x in lines if x.startswith("VmHWM"))) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak", nargs=2, metavar=("FOLDER", "MEMBER"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peak:
        print(peak(Path(chosen.peak[0]), chosen.peak[1], chosen.device))
        return
    folder = Path(tempfile.mkdtemp(prefix="workbench-tuco-"))
    try:
        write_pair(folder, chosen.shape, getattr(torch, chosen.dtype), chosen.device)
        cases = [("full", "memory"), ("full", "disk"), ("lora", "memory"), ("lora-last4", "memory")]
        rows = []
        for member, where in cases:
            rows.append(measure(folder, member, where, chosen.device, chosen.repeats))
            print(json.dumps(rows[-1]), flush=True)
        command = [sys.executable, "-m", "benchmarks.tuco", "--device", chosen.device, "--peak"]
        peaks = {
            member: int(
                subprocess.run(
                    [*command, str(folder), member], capture_output=True, text=True, check=True
                ).stdout.split()[-1]
            )
            for member in ("base", "lora", "full")
        }
    finally:
        shutil.rmtree(folder)
    about = {
        "machine": machine(chosen.device), "shape": chosen.shape, "dtype": chosen.dtype,
        "rows": ROWS, "tokens": TOKENS, "passes": rows, "peak_MiB": peaks,
    }  # fmt: skip
    write(chosen.out, f"tuco-{chosen.shape}-{chosen.device}", about)


def write(out: Path, name: str, found: dict[str, Any]) -> None:
    """NAME.json, and NAME.md for people."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(found, indent=1))
    host, peaks = found["machine"], found["peak_MiB"]
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
        f"Peak memory of a process of its own: one model and a forward pass {peaks['base']} MiB, a "
        f"LoRA pair and a TuCo pass {peaks['lora']} MiB ({peaks['lora'] / peaks['base']:.2f}x), a "
        f"full pair {peaks['full']} MiB ({peaks['full'] / peaks['base']:.2f}x).",
        "",
    ]
    (out / f"{name}.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()

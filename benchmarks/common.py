"""On what did a benchmark run, on which random models, and how is its table written?"""

from __future__ import annotations

import gc
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

from workbench.files.writing import OWN, writing

# Shapes of models that are made on the spot, with random weights.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6,
             "num_attention_heads": 6, "num_key_value_heads": 6, "vocab_size": 600},
    "qwen-tiny": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6,
                  "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 600},
    "135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
             "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152},
    "llama-2-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
                   "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000},
    "qwen2.5-7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
                   "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064},
}  # fmt: skip
DTYPES = ("float32", "bfloat16")


def random_model(shape: str, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> Any:
    """A Llama (for a Qwen shape a Qwen2) of this shape, eval mode, made in `dtype` on `device`."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    qwen = shape.startswith("qwen")
    kind, config = (Qwen2ForCausalLM, Qwen2Config) if qwen else (LlamaForCausalLM, LlamaConfig)
    before = torch.get_default_dtype()
    torch.manual_seed(seed)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            made: Any = kind(config(**SHAPES[shape]))  # pyright: ignore[reportArgumentType]
    finally:
        torch.set_default_dtype(before)
    return made.eval()


def matrices(shape: str) -> dict[str, tuple[int, int]]:
    """name -> (out, in) of the matrices of one layer."""
    given = SHAPES[shape]
    width, wide = given["hidden_size"], given["intermediate_size"]
    shared = width * given["num_key_value_heads"] // given["num_attention_heads"]
    return {
        "q_proj": (width, width), "k_proj": (shared, width), "v_proj": (shared, width),
        "o_proj": (width, width), "gate_proj": (wide, width), "up_proj": (wide, width),
        "down_proj": (width, wide),
    }  # fmt: skip


def wait() -> None:
    """Until the GPU has done what it was given; at once where there is none."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and its seconds, with all that it left for the GPU to do."""
    wait()
    start = time.perf_counter()
    found = call()
    wait()
    return found, time.perf_counter() - start


def fresh_peak(device: str) -> None:
    """From here on `peak` counts anew."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)


def let_go(device: str) -> None:
    """Give back the memory of models that nothing holds any more, and count anew."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    fresh_peak(device)


def peak(device: str) -> float | None:
    """GiB that tensors took at their most on the GPU; None on a CPU, which does not count them."""
    if not device.startswith("cuda"):
        return None
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) / 2**30


def machine(device: str = "cpu") -> dict[str, Any]:
    """Processor, cores, threads, torch, device and date."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = lines[0].split(":")[1].strip() if lines else model
    accelerator = torch.cuda.get_device_name() if device.startswith("cuda") else device
    return {
        "cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "device": accelerator, "date": date.today().isoformat(),
    }  # fmt: skip


def table(rows: list[dict[str, Any]], columns: list[str]) -> list[str]:
    """`rows` as a Markdown table; numbers to three digits, what a row lacks left empty."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = ["" if row.get(name) is None else row[name] for name in columns]
        text = [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells]
        lines.append("| " + " | ".join(text) + " |")
    return lines


def save(out: Path, name: str, found: dict[str, Any], lines: list[str]) -> None:
    """NAME.json and, for people, NAME.md; each there whole or not at all."""
    for file, text in (
        (f"{name}.json", json.dumps(found, indent=0)),  # a line a number, no blanks
        (f"{name}.md", "\n".join(lines)),
    ):
        with writing(out / file, OWN) as fresh:
            fresh.write_text(text + "\n", encoding="utf-8")

"""On what did a benchmark run, and how is its table written?"""

from __future__ import annotations

import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch


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
        cells = [row.get(name, "") for name in columns]
        text = [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells]
        lines.append("| " + " | ".join(text) + " |")
    return lines

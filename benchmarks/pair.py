"""A base, a full fine-tune and LoRA adapters of a shape, of random weights, written to a folder.

    python -m benchmarks.pair --shape llama-2-7b --device cuda --dtype bfloat16 --folder FOLDER

At 7B shapes in bfloat16 two times 13.5 GB. What it took is in FOLDER's parent's --out: pair.json.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import DTYPES, SHAPES, machine, random_model, save, table, timed

SHARD = "4GB"
ROOM = 1.1  # of what the two models take, free on the disk before the first byte is written


def write_pair(folder: Path, shape: str, dtype: torch.dtype, device: str = "cpu") -> None:
    """base, full, lora and lora-last4 under `folder`."""
    from peft import LoraConfig, get_peft_model

    from workbench.lab import shipped

    layers = SHAPES[shape]["num_hidden_layers"]
    base = random_model(shape, dtype, device)
    require_room(folder, base)
    base.save_pretrained(folder / "base", max_shard_size=SHARD)
    shipped.tokenizer().save_pretrained(folder / "base")
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if ".layers." in name:
                parameter += 0.01 * torch.randn_like(parameter)
    base.save_pretrained(folder / "full", max_shard_size=SHARD)
    matrices = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    for name, where in (("lora", None), ("lora-last4", list(range(layers - 4, layers)))):
        config = LoraConfig(
            r=16, target_modules=matrices, layers_to_transform=where, init_lora_weights=False
        )
        lora: Any = get_peft_model(base, config)
        lora.save_pretrained(str(folder / name))
        base = lora.unload()


def require_room(folder: Path, model: Any) -> None:
    """Raises OSError, with the numbers, where two such models do not fit on the folder's disk."""
    folder.mkdir(parents=True, exist_ok=True)
    needed = round(2 * ROOM * sum(p.nbytes for p in model.parameters()))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"{folder} has {free / 1e9:.0f} GB free; the pair needs {needed / 1e9:.0f}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="llama-2-7b")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    where = (chosen.folder, chosen.shape, getattr(torch, chosen.dtype), chosen.device)
    _, seconds = timed(lambda: write_pair(*where))
    size = sum(file.stat().st_size for file in chosen.folder.rglob("*.safetensors")) / 1e9
    row = {"shape": chosen.shape, "dtype": chosen.dtype, "seconds": seconds, "GB": size}
    headline = f"{size:.3g} GB of weights made and written in {seconds:.1f} s"
    found = {"machine": machine(chosen.device), "headline": headline, "rows": [row]}
    save(chosen.out, "pair", found, ["# A pair on disk", "", *table([row], list(row)), ""])


if __name__ == "__main__":
    main()

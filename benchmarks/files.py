"""What reading a pair from its files takes: preflight, spectra of the changes, retention.

    python -m benchmarks.files --pair FOLDER --device cuda --dtype bfloat16 --out out/gpu

FOLDER is what benchmarks.pair wrote. Each number is there as soon as it is known. The fingerprints
(sha256 over every byte, which every result names) are read before what would pay for them, and on
their own. The spectrum of a full fine-tune is taken of one matrix of each size, a matrix and its
transpose being one size, and that time for all matrices.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import DTYPES, let_go, machine, peak, save, table, timed

AIM = 30.0  # seconds for the preflight of 14 GB a side
PROMPTS = 16


def sampled_spectrum(pair: Any, device: str) -> dict[str, Any]:
    """Seconds for the spectra of all changes, from one of each size."""
    from workbench.spectral.delta_spectrum import change_values

    sites, info = pair.sites(), pair.base.weights().info
    sizes = {site: tuple(sorted(info[site.name].shape)) for site in sites}
    counts, first = Counter(sizes.values()), {size: site for site, size in sizes.items()}
    seconds = 0.0
    for size, count in counts.items():
        delta = pair.delta(first[size])
        seconds += timed(lambda delta=delta: change_values(delta, device))[1] * count
    said = f"from {len(counts)} of {len(sites)} matrices"
    return {"what": "spectra of the full change", "seconds": seconds, "said": said}


def measured(folder: Path, device: str, dtype: str) -> Any:
    """The rows, one after the other."""
    import workbench as wb

    full = wb.load_pair(folder / "base", folder / "full")
    lora = wb.load_pair(folder / "base", folder / "lora")
    size = sum(file.stat().st_size for file in (folder / "base").glob("*.safetensors")) / 1e9
    for name, pair in (("full", full), ("lora", lora)):
        report, seconds = timed(pair.check)
        said = f"{'comparable' if report.ok else 'NOT comparable'}, {size:.3g} GB a side"
        yield {"what": f"preflight, {name}", "seconds": seconds, "said": said}
    _, seconds = timed(lambda: (full.base.fingerprint, full.tuned.fingerprint))
    yield {"what": "fingerprints", "seconds": seconds, "said": "of both sides"}
    _, seconds = timed(lambda: wb.spectral.delta_spectrum(lora, device=device))
    yield {"what": "spectra of the LoRA", "seconds": seconds, "said": "all matrices"}
    yield sampled_spectrum(full, device)
    task = wb.tasks.boxes(PROMPTS, seed=0, count=3)
    given: dict[str, Any] = {"texts": [p.text for p in task], "device": device, "dtype": dtype}
    let_go(device)
    _, seconds = timed(lambda: wb.forgetting.retention(full, [task], **given))
    said = f"{PROMPTS} prompts and texts, models loaded"
    yield {"what": "retention", "seconds": seconds, "said": said, "peak_GiB": peak(device)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_float32_matmul_precision("highest")
    host, rows = machine(chosen.device), []
    for row in measured(chosen.pair, chosen.device, chosen.dtype):
        rows.append(row)
        print(row, flush=True)
        headline = "; ".join(f"{row['what']} {row['seconds']:.1f} s" for row in rows)
        lines = [
            "# Reading a pair from its files", "",
            f"{host['cpu']}, {host['cores']} cores, torch {host['torch']}, {host['device']}, "
            f"{chosen.dtype}, {host['date']}. The preflight of 14 GB a side aims at {AIM:g} s.", "",
            *table(rows, ["what", "seconds", "said", "peak_GiB"]), "",
        ]  # fmt: skip
        save(chosen.out, "files", {"machine": host, "headline": headline, "rows": rows}, lines)


if __name__ == "__main__":
    main()

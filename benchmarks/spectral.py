"""Intruder counting against the published algorithm, side by side in one run.

The published algorithm (arXiv 2410.21228), written here from its definition: for every matrix and
every member a thin SVD of the base, a thin SVD of the tuned matrix, and the whole product of their
left vectors. Ours without anything kept ("decide"): the top k of the member to a certified angle,
and bounds on their cosines from passes over the base. Ours with the base decomposed once ("auto").
All get the same matrices in memory, in one process, with the same threads (--threads). Decisions
are compared at eps .1 to .9; the seconds of "decide" are those at eps .5. Spectra: spiked (decaying
strong directions over a Gaussian bulk), power laws i^-a, and a linear one, whose gaps are alike.
With --pair instead every changed matrix of a real pair. With --shape all matrices of a whole pair
of that shape, of random weights: ours over all, the published algorithm over one of each size.

    python -m benchmarks.spectral --out benchmarks/results [--quick] [--threads 1]
    python -m benchmarks.spectral --pair BASE TUNED --out benchmarks/results
    python -m benchmarks.spectral --shape llama-2-7b --device cuda --dtype bfloat16 --out out
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import resource
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import (
    DTYPES,
    SHAPES,
    fresh_peak,
    machine,
    matrices,
    peak,
    save,
    table,
    timed,
)

K = 10
EPSILONS = [e / 10 for e in range(1, 10)]


def published(base: Tensor, tuned: Tensor) -> Tensor:
    """max_cosine of the top K, (K,): two SVDs and the full product."""
    left0 = torch.linalg.svd(base, full_matrices=False)[0]
    left = torch.linalg.svd(tuned, full_matrices=False)[0]
    return (left.T @ left0).abs().max(1).values[:K]


def noise(device: str, seed: int) -> Callable[..., Tensor]:
    """torch.randn on this device, from a seed of its own."""
    generator = torch.Generator(device).manual_seed(seed)
    return lambda *size: torch.randn(*size, generator=generator, device=device)


def trained_like(rows: int, columns: int, seed: int, device: str = "cpu") -> Tensor:
    """Gaussian bulk plus decaying strong directions, the shape of trained weights' spectra."""
    drawn = noise(device, seed)
    strong = min(rows, columns) // 8
    up = torch.linalg.qr(drawn(rows, strong))[0]
    down = torch.linalg.qr(drawn(columns, strong))[0]
    values = 12 * torch.arange(1, strong + 1, dtype=torch.float32, device=device) ** -0.6
    bulk = drawn(rows, columns) * 0.5 / max(rows, columns) ** 0.5
    return bulk + (up * values) @ down.T


def orthogonal(rows: int, columns: int, seed: int, device: str) -> Tensor:
    return torch.linalg.qr(noise(device, seed)(rows, columns))[0]


def of_spectrum(kind: str, rows: int, columns: int, seed: int, device: str = "cpu") -> Tensor:
    """`trained_like` for "spiked"; else Haar-random vectors with values i^-a ("power .5") or in
    equal steps ("linear"), the largest being 12."""
    if kind == "spiked":
        return trained_like(rows, columns, seed, device)
    size = min(rows, columns)
    at = torch.arange(1, size + 1, dtype=torch.float32, device=device)
    values = 1 - (at - 1) / size if kind == "linear" else at ** -float(kind.removeprefix("power "))
    left, right = (orthogonal(n, size, seed + i, device) for i, n in enumerate((rows, columns)))
    return (left * (12 * values)) @ right.T


def change(kind: str, base: Tensor, seed: int) -> Any:
    """LoRA factors of rank 8 that make several intruders, or a dense full-rank change."""
    from workbench.loaders.adapters import Factors

    drawn = noise(str(base.device), seed)
    rows, columns = base.shape
    if kind == "lora-r8":
        up = drawn(rows, 8) / rows**0.5
        down = drawn(8, columns) / columns**0.5
        return Factors(up * torch.linspace(10, 3, 8, device=base.device), down)
    return drawn(rows, columns) * 0.1 / max(rows, columns) ** 0.5


def fresh_cache() -> None:
    """No base is decomposed yet."""
    shutil.rmtree(Path(os.environ["WORKBENCH_CACHE"]) / "svd", ignore_errors=True)


@dataclass
class Tally:
    """What one method said over members and eps, beside the published algorithm."""

    agree: int = 0
    of: int = 0
    undecided: Counter[float] = field(default_factory=Counter)

    def add(self, eps: float, ours: Tensor, theirs: Tensor, undecided: int = 0) -> None:
        self.agree += int((ours == theirs).sum())
        self.of += len(ours)
        self.undecided[eps] += undecided

    def __str__(self) -> str:
        return f"{self.agree} of {self.of}"


def operator_of(stored: Tensor, kind: str, seed: int, device: str) -> Any:
    """The tuned matrix: this base, in float32 on `device`, and a change of this kind."""
    from workbench.spectral.linalg import Operator

    base = stored.to(device).float()
    delta = change(kind, base, seed=seed)
    return Operator(base, delta) if kind == "lora-r8" else Operator(base + delta)


def one_member(
    stored: Tensor,
    operator: Any,
    said: dict[str, Tally],
    device: str,
    epsilons: Sequence[float] = EPSILONS,
) -> dict[str, float]:
    """Seconds of the published algorithm and of ours, with and without the base decomposed.

    stored: the base at stored precision, in memory; both decompose in float32 on `device`. The
    published algorithm finds its matrices there, ours brings the base and reads its content.
    """
    from workbench.spectral.base_svd import base_triplets
    from workbench.spectral.intruders import certified, cosines, decisions, tuned_triplets
    from workbench.spectral.leading import top_triplets

    base, tuned = stored.to(device).float(), operator.formed()
    theirs, published_s = timed(lambda: published(base, tuned))
    fresh_cache()
    decided, decide_s = timed(lambda: decisions(operator, stored, K, 0.5, "left"))
    fresh_cache()
    decomposed, base_s = timed(lambda: base_triplets(stored, device))
    auto, member_s = timed(
        lambda: (
            cosines(
                tuned_triplets(operator, base_triplets(stored, device), K, 0.5, "left", "auto"),
                decomposed, "left",
            ).max(0).values
        )
    )  # fmt: skip
    theirs, auto = theirs.cpu(), auto.cpu()
    for eps in epsilons:
        said["auto"].add(eps, auto < eps, theirs < eps)
        found = certified(operator, base, K, eps, "left")
        sure, mine = torch.zeros(len(theirs), dtype=torch.bool), auto < eps
        if found is not None:
            sure, mine = found[1].decided(eps), found[1].high < eps
        left = int((~sure).sum())
        if eps == 0.5:  # what was timed
            mine = decided["intruder"].cpu()
            sure, mine = ~mine.isnan(), mine == 1
        said["decide"].add(eps, mine[sure], theirs[sure] < eps, left)
    return {
        "published": published_s, "decide": decide_s, "base": base_s, "member": member_s,
        "fallback": float(decided["fallback"].sum()),
        "open": float(decided["intruder"].isnan().sum()),
        "dense": float(top_triplets(operator, K, decomposed.right[:, : 2 * K]) is None),
    }  # fmt: skip


def one_size(
    rows: int,
    columns: int,
    kind: str,
    members: int = 1,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    spectrum: str = "spiked",
) -> dict[str, Any]:
    """Seconds of both, without the base's decomposition ("decide") and with it ("auto").

    ratio_first_member: published / decide, nothing kept from before. ratio_all_members: published /
    (base once + every member), ratio_base_cached: the same without the base. undecided: vectors
    that products alone left open, per eps (none where an eps is not named); those of small matrices
    are decided by the base's decomposition (decide_fallbacks, at eps .5).
    """
    base = of_spectrum(spectrum, rows, columns, 0, device).to(dtype).cpu()
    said = {"auto": Tally(), "decide": Tally()}
    found = [
        one_member(base, operator_of(base, kind, member + 1, device), said, device)
        for member in range(members)
    ]
    total = {name: sum(one[name] for one in found) for name in found[0]}
    left = {eps: count for eps, count in said["decide"].undecided.items() if count}
    return {
        "matrix": f"{rows} x {columns}",
        "spectrum": spectrum,
        "change": kind,
        "members": members,
        "published_s": total["published"] / members,
        "decide_s": total["decide"] / members,
        "base_once_s": found[0]["base"],
        "per_member_s": total["member"] / members,
        "ratio_first_member": found[0]["published"] / found[0]["decide"],
        "ratio_all_members": total["published"] / (found[0]["base"] + total["member"]),
        "ratio_base_cached": total["published"] / total["member"],
        "decide_agrees": str(said["decide"]),
        "decide_fallbacks": int(total["fallback"]),
        "decide_open": int(total["open"]),
        "undecided": ", ".join(f"{n} at {eps:g}" for eps, n in left.items()) or "none",
        "auto_agrees": str(said["auto"]),
        "auto_dense": int(total["dense"]),
    }


KINDS = ("lora-r8", "full")


def whole_pair(
    shape: str, device: str, dtype: torch.dtype, told: Callable[[list[dict[str, Any]]], None]
) -> list[dict[str, Any]]:
    """A row a kind: seconds to count the intruders of every matrix of a pair of this shape, nothing
    kept from before, and the most GPU memory that took; the published algorithm is yet to come.

    Each matrix is made, and let go, on its own: its making is not counted. told: called with the
    rows so far behind every layer.
    """
    from workbench.spectral.intruders import decisions

    layers = SHAPES[shape]["num_hidden_layers"]
    rows = [
        {"shape": shape, "change": kind, "of": layers * len(matrices(shape)), "matrices": 0,
         "decide_s": 0.0, "peak_GiB": None, "fallbacks": 0, "intruders": 0}
        for kind in KINDS
    ]  # fmt: skip
    for layer in range(layers):
        for place, size in enumerate(matrices(shape).values()):
            seed = 100 * layer + place
            stored = trained_like(*size, seed, device).to(dtype).cpu()
            for row in rows:
                operator = changed(stored, row["change"], seed + 50, device)
                fresh_cache()
                fresh_peak(device)
                found, seconds = timed(
                    lambda operator=operator, stored=stored: decisions(
                        operator, stored, K, 0.5, "left"
                    )
                )
                row["decide_s"] += seconds
                row["matrices"] += 1
                row["fallbacks"] += int(found["fallback"].sum())
                row["intruders"] += int(found["intruder"].sum())
                most = peak(device)
                row["peak_GiB"] = most if most is None else max(most, row["peak_GiB"] or 0.0)
        told(rows)
    return rows


def changed(stored: Tensor, kind: str, seed: int, device: str) -> Any:
    """The tuned matrix as an operator, float32 on `device`; a full one rounded as it is stored."""
    from workbench.spectral.linalg import Operator

    base = stored.to(device).float()
    delta = change(kind, base, seed)
    if kind == "lora-r8":
        return Operator(base, delta)
    return Operator((base + delta).to(stored.dtype).float())


def sampled(shape: str, device: str, dtype: torch.dtype, row: dict[str, Any]) -> dict[str, Any]:
    """The published algorithm on one matrix of each size, a matrix and its transpose being one
    size, taken for all of them; and whether it decides as ours does."""
    from workbench.spectral.intruders import decisions

    counts = Counter((min(size), max(size)) for size in matrices(shape).values())
    seconds, said = 0.0, Tally()
    for place, (size, count) in enumerate(counts.items()):
        stored = trained_like(*size, place, device).to(dtype).cpu()
        operator = changed(stored, row["change"], place + 50, device)
        base, tuned = stored.to(device).float(), operator.formed()
        best, took = timed(lambda base=base, tuned=tuned: published(base, tuned))
        seconds += took * count * SHAPES[shape]["num_hidden_layers"]
        fresh_cache()
        found = decisions(operator, stored, K, 0.5, "left")
        said.add(0.5, found["intruder"].bool().cpu(), best.cpu() < 0.5)
    return {
        "published_s": seconds, "published_matrices": len(counts),
        "ratio": seconds / row["decide_s"], "agrees": str(said),
    }  # fmt: skip


def real_pair(base: str, tuned: str) -> list[dict[str, Any]]:
    """A row for each size of matrix that the fine-tuning changed: seconds for all of them, and how
    many matrices products alone decided at eps .5, every vector of them."""
    import workbench as wb
    from workbench.spectral.linalg import Operator

    found: dict[str, dict[str, Any]] = {}
    said: dict[str, dict[str, Tally]] = {}
    for delta in wb.load_pair(base, tuned).deltas():
        if not delta.changed or max(delta.base.shape) > 10 * min(delta.base.shape):
            continue  # embeddings
        rows, columns = delta.base.shape
        size = f"{rows} x {columns}"
        operator, told = (
            Operator.of(delta),
            said.setdefault(size, {"auto": Tally(), "decide": Tally()}),
        )
        left = told["decide"].undecided[0.5]
        one = one_member(delta.base, operator, told, "cpu", [0.5])
        row = found.setdefault(size, {"matrix": size, "matrices": 0, "by_products": 0})
        row["matrices"] += 1
        row["by_products"] += int(told["decide"].undecided[0.5] == left)
        for name in ("published", "decide", "member"):
            row[f"{name}_s"] = row.get(f"{name}_s", 0.0) + one[name]
    for size, row in found.items():
        row |= {f"{name}_agrees": str(tally) for name, tally in said[size].items()}
    return list(found.values())


def large_checkpoint(gigabytes: float) -> dict[str, Any]:
    """Peak memory while the norm of every change of a pair on disk is read, matrix by matrix."""
    from safetensors.torch import save_file

    import workbench as wb

    folder = Path(tempfile.mkdtemp(prefix="workbench-large-", dir=os.environ.get("TMPDIR")))
    try:
        shape, per_shard = (4096, 4096), 8
        shards = max(1, round(gigabytes * 2**30 / (per_shard * 4096 * 4096 * 4)))
        for side, scale in (("base", 1.0), ("tuned", 1.01)):
            (folder / side).mkdir()
            index = {}
            for shard in range(shards):
                name = f"model-{shard:05d}.safetensors"
                names = [f"layers.{shard}.m{i}.weight" for i in range(per_shard)]
                save_file({n: torch.full(shape, scale) for n in names}, folder / side / name)
                index |= dict.fromkeys(names, name)
            (folder / side / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": index})
            )
        before = peak_mebibytes()
        pair = wb.load_pair(folder / "base", folder / "tuned")
        count, seconds = timed(lambda: sum(1 for d in pair.deltas() if d.norm > 0))
        size = sum(f.stat().st_size for f in (folder / "base").iterdir()) / 2**30
        return {
            "checkpoint_GiB": round(size, 2), "matrices_read": count, "seconds": seconds,
            "peak_MiB_before": before, "peak_MiB_after": peak_mebibytes(),
        }  # fmt: skip
    finally:
        shutil.rmtree(folder)


def peak_mebibytes() -> int:
    """The process's largest resident set so far; pages of mapped files count while they are in."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--quick", action="store_true", help="1024 x 1024 only, 0.5 GB checkpoint")
    parser.add_argument("--largest", type=int, default=4096, help="skip matrices with more rows")
    parser.add_argument("--threads", type=int, help="of torch, for both (default: its own)")
    parser.add_argument("--pair", nargs=2, metavar=("BASE", "TUNED"), help="a real pair instead")
    parser.add_argument("--no-checkpoint", action="store_true", help="matrices only")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the stored weights")
    parser.add_argument("--shape", action="append", default=[], choices=SHAPES, help="whole pairs")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    os.environ["WORKBENCH_CACHE"] = tempfile.mkdtemp(prefix="workbench-bench-")
    atexit.register(shutil.rmtree, os.environ["WORKBENCH_CACHE"], ignore_errors=True)
    if chosen.shape:
        whole_pairs(chosen)
        return
    if chosen.pair:
        write_real(chosen)
        return
    where: dict[str, Any] = {"device": chosen.device, "dtype": getattr(torch, chosen.dtype)}
    large = None
    if not chosen.no_checkpoint:
        large = large_checkpoint(0.5 if chosen.quick else 8)
        print(json.dumps(large), flush=True)
    cases = [
        *((size, size, 1, "spiked") for size in (1024, 2048, 4096)),
        (4096, 11008, 1, "spiked"),
        (2048, 2048, 5, "spiked"),
        *((2048, 2048, 1, kind) for kind in ("power .3", "power .7", "power 1", "linear")),
        *((4096, columns, 1, "power .5") for columns in (4096, 11008)),
        (4096, 4096, 5, "power .5"),
    ]
    one_size(256, 256, "full", **where)  # libraries load and threads start outside the measurement
    rows = []
    cases = cases[:1] if chosen.quick else [c for c in cases if c[0] <= chosen.largest]
    for height, width, members, spectrum in cases:
        for kind in KINDS:
            rows.append(one_size(height, width, kind, members, spectrum=spectrum, **where))
            print(json.dumps(rows[-1]), flush=True)
    found = {"machine": machine(chosen.device), "dtype": chosen.dtype, "intruders": rows}
    write(chosen.out, found | {"large_checkpoint": large})


def write_real(chosen: argparse.Namespace) -> None:
    """spectral-real-MEMBER.json and .md."""
    rows, host = real_pair(*chosen.pair), machine()
    lines = [
        "# Intruder dimensions of a real pair, by products alone",
        "",
        f"{host['cpu']}, {host['cores']} cores, torch {host['torch']}, {host['date']}. Seconds for "
        "all changed matrices of one size; by_products: those of which products alone decide every "
        "one of the top 10 vectors at eps .5; agrees: with the published decisions.",
        "",
        *table(rows, list(rows[0])),
        "",
    ]
    save(
        chosen.out,
        f"spectral-real-{Path(chosen.pair[1]).name}",
        {"machine": host, "rows": rows},
        lines,
    )


def whole_pairs(chosen: argparse.Namespace) -> None:
    """spectral-pairs-DEVICE.json and .md: every shape, as a LoRA and as a full fine-tune; written
    anew behind every number, so that one that takes too long loses none."""
    known: list[dict[str, Any]] = []
    dtype = getattr(torch, chosen.dtype)
    one_size(256, 256, "full", device=chosen.device, dtype=dtype)  # as above

    def told(now: list[dict[str, Any]]) -> None:
        save_pairs(chosen, known + now)

    for shape in chosen.shape:
        rows = whole_pair(shape, chosen.device, dtype, told)
        for row in rows:
            row |= sampled(shape, chosen.device, dtype, row)
            told(rows)
            print(json.dumps(row), flush=True)
        known += rows


def save_pairs(chosen: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    host, name = machine(chosen.device), f"spectral-pairs-{chosen.device.partition(':')[0]}"
    headline = "; ".join(
        f"{row['change']} {row['decide_s']:.1f} s for {row['matrices']} of {row['of']} "
        "matrices"
        + (f", {row['ratio']:.0f}x two SVDs" if "ratio" in row else "")
        + ("" if row["peak_GiB"] is None else f", {row['peak_GiB']:.2f} GiB")
        for row in rows
    )
    lines = [
        "# Intruder dimensions of whole pairs",
        "",
        f"{host['cpu']}, {host['cores']} cores, torch {host['torch']}, {host['device']}, "
        f"{host['date']}. Random weights of each shape in {chosen.dtype}, decomposed in float32; "
        "decide_s: seconds for all matrices; published_s: two SVDs of one matrix of each size "
        "(published_matrices of them), taken for all; agrees: of the vectors of those matrices.",
        "",
        *table(rows, list(max(rows, key=len))),
        "",
    ]
    found = {"machine": host, "dtype": chosen.dtype, "headline": headline, "rows": rows}
    save(chosen.out, name, found, lines)


def write(out: Path, found: dict[str, Any]) -> None:
    """spectral.json, and spectral.md for people."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "spectral.json").write_text(json.dumps(found, indent=1))
    host, large = found["machine"], found["large_checkpoint"]
    lines = [
        "# Intruder dimensions: this workbench against the published algorithm",
        "",
        f"{host['cpu']}, {host['cores']} cores, torch {host['torch']}, {host['device']}, "
        f"{found['dtype']}, {host['threads']} threads for both, {host['date']}. Seconds per "
        "matrix; ratios are published / ours; decisions are compared with the published ones at "
        "eps .1 to .9.",
        "",
        *table(found["intruders"], list(found["intruders"][0])),
    ]
    if large is not None:
        lines += large_lines(large)
    (out / "spectral.md").write_text("\n".join([*lines, ""]))


def large_lines(large: dict[str, Any]) -> list[str]:
    return [
        "",
        f"Reading every change of a pair of {large['checkpoint_GiB']} GiB checkpoints "
        f"({large['matrices_read']} matrices) took {large['seconds']:.0f} s; peak resident memory "
        f"went from {large['peak_MiB_before']} to {large['peak_MiB_after']} MiB.",
    ]


if __name__ == "__main__":
    main()

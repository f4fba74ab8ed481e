"""Four patching methods against TransformerLens and nnsight, in one run, at equal numbers.

    python -m benchmarks.patching_peers --case data/family/base:16 --case 135m:1:z,path --out out

A case is a folder or a shape, how many prompts, and which methods, all where none is named. Prompts
are 64 random tokens, and their partners differ in half of them; the logit difference at the last
token is measured:

    residual    resid_pre of every layer at every token, denoising
    z           every head's z at all tokens, denoising
    path        every head's path to the logits at the last token (later heads held, MLPs follow)
    eap         first-order effect of every edge, by one gradient

TransformerLens runs its own functions for the first two; for the others it has none, so that its
hooks make the same loop as anyone would write. nnsight runs a trace for each patch; it has no loop
of edges. Numbers must agree within `CLOSE` of their largest. What is done within `SHORT` seconds is
run up to five times, and the least counts, for all alike.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.common import DTYPES, let_go, machine, save, table, timed
from benchmarks.patching import ROWS, difference, loaded, ours, theirs_lens, theirs_nnsight

SHORT = 4.0  # seconds of all runs of one call, beyond which it is not run again
CLOSE = 1e-2  # of the largest number: kernels differ, and so does the order of sums


class Case(NamedTuple):
    """One model and its prompts. clean, dirty: rows; one, other: the same as batches."""

    model: Any
    words: Any
    layout: Any
    clean: Any
    dirty: Any
    one: Any
    other: Any
    metric: Callable[[Tensor], Tensor]
    device: str


def rows_of(vocabulary: int, n: int, tokens: int) -> tuple[list[Any], list[Any]]:
    """n prompts of random tokens, and partners with every second token drawn anew."""
    from workbench.tasks.batching import Row

    random = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocabulary, (2, n, tokens), generator=random)
    said = torch.randint(3, vocabulary, (n, 3), generator=random).tolist()
    ids[1, :, ::2] = ids[0, :, ::2]
    found = [
        [Row(str(i), ids[side, i].tolist(), {}, (a,), (b, c)) for i, (a, b, c) in enumerate(said)]
        for side in range(2)
    ]
    return found[0], found[1]


def case(reference: str, n: int, tokens: int, device: str, dtype: torch.dtype) -> tuple[str, Case]:
    from workbench.models import Layout
    from workbench.tasks.batching import batch

    name, model, words = loaded(reference, device, dtype)
    clean, dirty = rows_of(model.config.vocab_size, n, tokens)
    one, other = (batch(own, range(n), device, 0) for own in (clean, dirty))
    made = Case(model, words, Layout(model), clean, dirty, one, other, difference(clean), device)
    return name, made


# ---- ours


def our_residual(own: Case) -> Tensor:
    return ours(own.model, own.words, own.clean, own.dirty, own.device, ROWS)[0]


def our_z(own: Case) -> Tensor:
    """(layers, heads)"""
    from workbench.patching.patches import patches
    from workbench.patching.sweep import Side, sweep

    sides = Side(own.model, own.dirty), Side(own.model, own.clean)
    places = patches(own.layout, "z")
    made = sweep(*sides, places, own.words, device=own.device, batch_size=ROWS)
    found = torch.from_numpy(made.patched["logit_difference"].mean(1))
    return found.view(own.layout.layers, -1)


def our_path(own: Case) -> Tensor:
    """(layers, heads), changes of the logit difference"""
    from workbench.patching.path_effects import effects
    from workbench.patching.sweep import Side

    sides = Side(own.model, own.clean), Side(own.model, own.dirty)
    made = effects(*sides, own.words, shuffled=False, device=own.device, batch_size=ROWS)
    found = torch.from_numpy(made.values["patch", "logit_change"].mean(1))
    return found.view(own.layout.layers, -1)


def our_eap(own: Case) -> Tensor:
    """(edges,)"""
    from workbench.patching import edges
    from workbench.patching.first_order import observe

    needed = edges.needed(own.layout)
    there = observe(own.model, own.one, needed, "logit_difference", slopes=False)
    here = observe(own.model, own.other, needed, "logit_difference")
    found = edges.scores(own.model, there.values, here.values, here.values, here.slopes)
    return found.double().mean(1).cpu()


# ---- TransformerLens


def lens_residual(bridge: Any, own: Case) -> Tensor:
    return theirs_lens(bridge, own.one, own.other, own.metric)


def lens_z(bridge: Any, own: Case) -> Tensor:
    from transformer_lens import patching

    with torch.no_grad():
        _, cache = bridge.run_with_cache(own.one.ids, prepend_bos=False)
        sweep = patching.get_act_patch_attn_head_out_all_pos
        return sweep(bridge, own.other.ids, cache, own.metric).cpu()


def lens_path(bridge: Any, own: Case) -> Tensor:
    shape = own.layout.layers, own.layout.heads
    made = torch.zeros(shape)
    with torch.no_grad():
        logits, kept = bridge.run_with_cache(own.one.ids, prepend_bos=False)
        _, other = bridge.run_with_cache(own.other.ids, prepend_bos=False)
        plain = own.metric(logits)
        for layer, head in torch.cartesian_prod(*map(torch.arange, shape)).tolist():

            def hook(z: Tensor, hook: Any, first: int = layer, head: int = head) -> Tensor:
                held = z.clone()
                if hook.layer() == first:
                    held[:, -1, head] = other[hook.name][:, -1, head]
                else:
                    held[:, -1] = kept[hook.name][:, -1]
                return held

            hooks = [(f"blocks.{one}.attn.hook_z", hook) for one in range(layer, shape[0])]
            run = bridge.run_with_hooks(own.one.ids, fwd_hooks=hooks, prepend_bos=False)
            made[layer, head] = own.metric(run) - plain
    return made


def lens_eap(bridge: Any, own: Case) -> Tensor:
    """Edge attribution as a notebook would write it: the input of every receiver forked, one
    forward and one backward pass, then every sender against every receiver."""
    layers = range(own.layout.layers)
    reads = [f"blocks.{i}.attn.hook_{part}_input" for i in layers for part in "qkv"]
    reads += [*(f"blocks.{i}.hook_mlp_in" for i in layers)]
    reads.append(f"blocks.{layers[-1]}.hook_resid_post")
    slopes: dict[str, Tensor] = {}

    def keep(slope: Tensor, hook: Any, name: str) -> None:
        slopes[name] = slope.detach()  # a hook may have another name than it was asked by

    kept = [(name, partial(keep, name=name)) for name in reads]
    bridge.set_use_split_qkv_input(True)
    bridge.set_use_hook_mlp_in(True)
    try:
        with torch.no_grad():
            _, clean = bridge.run_with_cache(own.one.ids, prepend_bos=False)
            _, dirty = bridge.run_with_cache(own.other.ids, prepend_bos=False)
        with torch.enable_grad(), bridge.hooks(bwd_hooks=kept):
            # The metric is a mean over prompts.
            own.metric(bridge(own.other.ids, prepend_bos=False)).backward()
    finally:
        bridge.zero_grad()
        bridge.set_use_split_qkv_input(False)
        bridge.set_use_hook_mlp_in(False)
    heads, mlps = [], []
    for i in layers:
        z = f"blocks.{i}.attn.hook_z"
        out = bridge.blocks[i].attn.W_O
        heads += [*torch.einsum("bthd,hdw->hbtw", clean[z] - dirty[z], out)]
        mlps.append(clean[f"blocks.{i}.hook_mlp_out"] - dirty[f"blocks.{i}.hook_mlp_out"])
    embedded = clean["blocks.0.hook_resid_pre"] - dirty["blocks.0.hook_resid_pre"]
    found = []
    for name in sorted(reads, key=lambda name: _order(name, layers[-1])):
        layer, slope = int(name.split(".")[1]), slopes[name]
        last, mlp = name.endswith("resid_post"), name.endswith("mlp_in")
        before = (layer + (mlp or last)) * own.layout.heads
        sent = torch.stack([embedded, *heads[:before], *mlps[: layer + last]])
        read = slope.movedim(2, 0) if slope.ndim == 4 else slope[None]
        found.append(torch.einsum("sbtw,rbtw->sr", sent.double(), read.double()).flatten())
    return torch.cat(found).detach().cpu()


def _order(name: str, last: int) -> tuple[int, int]:
    parts = ("q_input", "k_input", "v_input", "mlp_in", "resid_post")
    return int(name.split(".")[1]), next(i for i, part in enumerate(parts) if name.endswith(part))


# ---- nnsight


def sight_residual(sight: Any, own: Case) -> Tensor:
    return theirs_nnsight(sight, own.layout, own.one, own.other, own.metric)


def sight_z(sight: Any, own: Case) -> Tensor:
    from workbench.models import Site, nnsight

    made = torch.zeros(own.layout.layers, own.layout.heads)
    sites = [Site("z", layer) for layer in range(own.layout.layers)]
    with torch.no_grad():
        kept = nnsight.run(sight, own.one.inputs, layout=own.layout, read=sites).captured
        for site in sites:
            for head in range(own.layout.heads):
                write = {Site("z", site.layer, head): kept[site][:, :, head]}
                run = nnsight.run(sight, own.other.inputs, layout=own.layout, write=write)
                made[site.layer, head] = own.metric(run.logits)
    return made


def sight_path(sight: Any, own: Case) -> Tensor:
    from workbench.models import Site, nnsight

    layers, heads = own.layout.layers, own.layout.heads
    sites = [Site("z", layer) for layer in range(layers)]
    made = torch.zeros(layers, heads)
    known: dict[str, Any] = {"layout": own.layout}
    with torch.no_grad():
        logits, kept = nnsight.run(sight, own.one.inputs, read=sites, **known)
        other = nnsight.run(sight, own.other.inputs, read=sites, **known).captured
        plain = own.metric(logits)
        for layer in range(layers):
            held = {
                Site("z", i, position=-1): kept[sites[i]][:, -1:] for i in range(layer + 1, layers)
            }
            for head in range(heads):
                value = other[sites[layer]][:, -1:, head]
                write = {Site("z", layer, head, position=-1): value} | held
                run = nnsight.run(sight, own.one.inputs, write=write, at=own.one.index, **known)
                made[layer, head] = own.metric(run.logits) - plain
    return made


OURS = {"residual": our_residual, "z": our_z, "path": our_path, "eap": our_eap}
LENS = {"residual": lens_residual, "z": lens_z, "path": lens_path, "eap": lens_eap}
SIGHT = {"residual": sight_residual, "z": sight_z, "path": sight_path}


def measure(name: str, own: Case, methods: list[str]) -> list[dict[str, Any]]:
    """A row for each method: seconds, ratios to ours, and the largest differences as shares of the
    largest number. Raises where numbers are not equal."""
    from workbench.models import nnsight, transformer_lens

    with torch.no_grad():  # kernels load outside the measurement
        own.model(**own.one.inputs, use_cache=False)
    bridge, sight = transformer_lens.bridge(own.model, own.words), nnsight.wrap(own.model)
    rows = []
    for method in methods:
        let_go(own.device)
        found, took = _least(partial(OURS[method], own))
        size = {"prompts": len(own.clean), "tokens": own.one.ids.shape[1]}
        row = {"model": name, "method": method} | size
        row |= {"numbers": found.numel(), "ours_s": took}
        for peer, calls, handle in (
            ("transformer_lens", LENS, bridge), ("nnsight", SIGHT, sight),
        ):  # fmt: skip
            if method not in calls:
                continue
            theirs, seconds = _least(partial(calls[method], handle, own))
            apart = float((found - theirs).abs().max() / found.abs().max())
            if not apart < CLOSE:
                raise SystemExit(f"{name}, {method}: {peer} differs by {apart:.2g} of the largest.")
            row |= {f"{peer}_s": seconds, f"ratio_{peer}": seconds / took}
            row[f"difference_{peer}"] = apart
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def _least(call: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """What a call gives, and the least seconds of its runs."""
    found, took = timed(call)
    runs = [took]
    while len(runs) < 5 and sum(runs) < SHORT:
        runs.append(timed(call)[1])
    return found, min(runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", required=True, help="may repeat")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    for one in options.case:
        reference, prompts, *asked = one.split(":")
        methods = asked[0].split(",") if asked else [*OURS]
        if unknown := {*methods} - {*OURS}:
            parser.error(f"unknown method {min(unknown)}; known are {', '.join(OURS)}")
        size = int(prompts), options.tokens, options.device
        found += measure(*case(reference, *size, getattr(torch, options.dtype)), methods)
    about = machine(options.device)
    columns = [name for name in max(found, key=len)]
    lines = [
        f"Patching against peers: {about['cpu']}, {about['threads']} threads, torch "
        f"{about['torch']}, {about['device']}, {options.dtype}, {about['date']}.", "",
        *table(found, columns), "",
    ]  # fmt: skip
    headline = "; ".join(
        f"{row['model']} {row['method']}: "
        + ", ".join(f"{row[k]:.1f}x {k.removeprefix('ratio_')}" for k in row if "ratio_" in k)
        for row in found
    )
    made = {"machine": about, "headline": headline, "rows": found}
    save(options.out, "patching-peers", made, lines)


if __name__ == "__main__":
    main()

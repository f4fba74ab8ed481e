"""A full layer x position sweep of the residual stream, against TransformerLens and nnsight.

    python -m benchmarks.patching --model data/family/base --out benchmarks/results
    python -m benchmarks.patching --shape llama-2-7b --device cuda --dtype bfloat16 --out out

Denoising on boxes prompts of one length: every layer's resid_pre at every token, one patch at a
time, scored by the logit difference. TransformerLens runs its own get_act_patch_resid_pre, nnsight
a trace per patch; both run the whole model for each. All three on one machine in one run, with the
largest difference between their numbers. Then what path patching over all heads costs, counted in
plain forward passes, against two whole passes a head.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import (
    DTYPES,
    SHAPES,
    let_go,
    machine,
    peak,
    random_model,
    save,
    table,
    timed,
)

ROWS = 32  # of several patches that share a forward pass


def prompts_for(words: Any, n: int, count: int) -> tuple[Any, Any]:
    """n clean boxes prompts of one length and their corrupt partners."""
    from workbench import tasks

    natural = len(words) > 1000
    if natural:
        drawn = tasks.whole_words(tasks.boxes_prompts(40 * n, seed=0, count=count), words)
    else:
        drawn = tasks.boxes(4 * n, seed=0, count=count, order="object first")
    by_length: dict[int, list[Any]] = {}
    for prompt in drawn:
        by_length.setdefault(len(words(prompt.prompt)["input_ids"]), []).append(prompt)
    same = max(by_length.values(), key=len)[:n]
    clean = tasks.PromptSet("bench", tuple(same))
    return clean, tasks.corrupt(clean, tokenizer=words)


def ours(
    model: Any, words: Any, clean: Sequence[Any], dirty: Sequence[Any], device: str, rows: int
) -> Any:
    """(layers, tokens) mean logit differences, and the cost in plain forward passes."""
    from workbench.models import Layout
    from workbench.patching.patches import patches
    from workbench.patching.sweep import Side, sweep

    length = len(clean[0].ids)
    chosen = patches(Layout(model), "resid_pre", range(length))
    made = sweep(
        *(Side(model, dirty), Side(model, clean), chosen, words),
        device=device,
        batch_size=rows,
    )
    scores = torch.from_numpy(made.patched["logit_difference"].mean(1))
    return scores.view(-1, length), made.forwards


def difference(rows: Sequence[Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The mean logit difference of logits (batch, token, vocabulary) at the last token."""
    right = torch.tensor([row.answer[0] for row in rows])
    foils = [list(row.foils) for row in rows]

    def metric(logits: torch.Tensor) -> torch.Tensor:
        last = logits[:, -1].float()
        own = last.gather(-1, right[:, None].to(last.device))[:, 0]
        wrong = torch.stack([last[i, own].max() for i, own in enumerate(foils)])
        return (own - wrong).mean()

    return metric


def theirs_lens(bridge: Any, clean: Any, dirty: Any, metric: Any) -> torch.Tensor:
    """TransformerLens' own sweep, (layers, tokens)."""
    from transformer_lens import patching

    with torch.no_grad():
        _, cache = bridge.run_with_cache(clean.ids, prepend_bos=False)
        return patching.get_act_patch_resid_pre(bridge, dirty.ids, cache, metric).cpu()


def theirs_nnsight(sight: Any, layout: Any, clean: Any, dirty: Any, metric: Any) -> torch.Tensor:
    """A trace per patch, (layers, tokens)."""
    from workbench.models import Site, nnsight

    sites = [Site("resid_pre", layer) for layer in range(layout.layers)]
    with torch.no_grad():
        kept = nnsight.run(sight, clean.inputs, layout=layout, read=sites).captured
        made = torch.zeros(layout.layers, clean.ids.shape[1])
        for layer, site in enumerate(sites):
            for token in range(clean.ids.shape[1]):
                write = {Site("resid_pre", layer, position=token): kept[site][:, [token]]}
                run = nnsight.run(sight, dirty.inputs, layout=layout, write=write, at=dirty.index)
                made[layer, token] = metric(run.logits)
    return made


def naive(model: Any, layout: Any, clean: Any, dirty: Any, metric: Any) -> torch.Tensor:
    """The whole model run again for every patch, by a plain hook on the block, (layers, tokens)."""
    from workbench.models import Site, capture

    sites = [Site("resid_pre", layer) for layer in range(layout.layers)]
    made = torch.zeros(layout.layers, clean.ids.shape[1])
    with torch.no_grad():
        with capture(model, sites, at=clean.index) as kept:
            model(**clean.inputs, use_cache=False)
        for layer, site in enumerate(sites):
            for token in range(clean.ids.shape[1]):

                def patch(module: Any, args: Any, full: Any = kept[site], t: int = token) -> Any:
                    stream = args[0].clone()
                    stream[:, t] = full[:, t]
                    return (stream, *args[1:])

                hook = layout.block(layer).register_forward_pre_hook(patch)
                try:
                    made[layer, token] = metric(model(**dirty.inputs, use_cache=False).logits)
                finally:
                    hook.remove()
    return made


def loaded(reference: str, device: str, dtype: torch.dtype) -> tuple[str, Any, Any]:
    """Name, model and tokenizer of a checkpoint, or of a shape's random weights, which read the
    small world's words."""
    from workbench.lab import shipped
    from workbench.loaders import Checkpoint

    if reference in SHAPES:
        return reference, random_model(reference, dtype, device), shipped.tokenizer()
    checkpoint = Checkpoint.parse(reference)
    return checkpoint.name, checkpoint.load(device, dtype), checkpoint.tokenizer()


def measure(
    reference: str, n: int, count: int, device: str, dtype: torch.dtype, *, path: bool = True
) -> dict[str, Any]:
    """One model's row: seconds, ratios to ours, largest differences, and costs.

    Against TransformerLens and nnsight where they are installed; where neither is, against plain
    runs of the whole model.
    """
    from workbench.models import Layout
    from workbench.tasks.batching import batch, rows

    name, model, words = loaded(reference, device, dtype)
    clean, dirty = (rows(words, one, answers=True) for one in prompts_for(words, n, count))
    one, other = (batch(rows_, range(len(rows_)), device, 0) for rows_ in (clean, dirty))
    metric, layout = difference(clean), Layout(model)
    with torch.no_grad():  # kernels load outside the measurement
        model(**one.inputs, use_cache=False)
    let_go(device)
    (scores, forwards), took = timed(lambda: ours(model, words, clean, dirty, device, ROWS))
    row = {
        "model": name, "prompts": len(clean), "tokens": scores.shape[1],
        "patches": scores.numel(), "ours_s": took, "ours_forwards": forwards,
        "peak_GiB": peak(device),
    }  # fmt: skip
    for peer, sweep in peers(model, words, layout).items():
        theirs, seconds = timed(lambda sweep=sweep: sweep(one, other, metric))
        apart = float((scores - theirs).abs().max())
        row |= {f"{peer}_s": seconds, f"ratio_{peer}": seconds / took, f"difference_{peer}": apart}
    return row | (path_costs(model, words, layout, clean, dirty, device) if path else {})


def peers(model: Any, words: Any, layout: Any) -> dict[str, Callable[..., torch.Tensor]]:
    """name -> (clean, dirty, metric) -> (layers, tokens)."""
    from workbench.models import nnsight, transformer_lens

    found: dict[str, Callable[..., torch.Tensor]] = {}
    if find_spec("transformer_lens"):
        found["transformer_lens"] = partial(theirs_lens, transformer_lens.bridge(model, words))
    if find_spec("nnsight"):
        found["nnsight"] = partial(theirs_nnsight, nnsight.wrap(model), layout)
    return found or {"naive": partial(naive, model, layout)}


def path_costs(
    model: Any, words: Any, layout: Any, clean: Any, dirty: Any, device: str
) -> dict[str, Any]:
    """Path patching of all heads, in plain forward passes."""
    from workbench.patching.path_effects import effects
    from workbench.patching.sweep import Side

    sides = Side(model, clean), Side(model, dirty)
    cost = effects(*sides, words, shuffled=False, device=device).forwards
    heads = layout.layers * layout.heads
    return {"path_heads": heads, "path_forwards": cost, "path_naive": 2 * heads + 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", default=[], help="may repeat")
    parser.add_argument(
        "--shape", action="append", default=[], choices=SHAPES, help="random weights"
    )
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--boxes", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--sweep", action="store_true", help="without path patching")
    parser.add_argument("--name", default="patching")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if not options.model + options.shape:
        parser.error("give at least one --model or --shape")
    found, dtype = [], getattr(torch, options.dtype)
    where: dict[str, Any] = {"device": options.device, "dtype": dtype, "path": not options.sweep}
    for reference in [*options.model, *options.shape]:
        found.append(measure(reference, options.prompts, options.boxes, **where))
        print(json.dumps(found[-1]), flush=True)
        write(options, found)


def write(options: argparse.Namespace, found: list[dict[str, Any]]) -> None:
    """NAME.json and .md of the models so far."""
    about = machine(options.device)
    columns = [name for name in max(found, key=len) if "path" not in name]
    lines = [
        f"Residual sweeps, every layer and token: {about['cpu']}, {about['threads']} threads, "
        f"torch {about['torch']}, {about['device']}, {options.dtype}, {about['date']}.", "",
        *table(found, columns), "",
    ]  # fmt: skip
    if not options.sweep:
        costs = ["model", "path_heads", "path_forwards", "path_naive"]
        lines += [
            "Path patching of all heads to the logits at the last token, in plain forward passes:",
            "", *table(found, costs), "",
        ]  # fmt: skip
    headline = "; ".join(
        f"{row['model']}: {row['patches']} patches in {row['ours_s']:.1f} s, "
        + ", ".join(
            f"{row[key]:.1f}x {key.removeprefix('ratio_')}" for key in row if "ratio_" in key
        )
        for row in found
    )
    made = {"machine": about, "headline": headline, "rows": found}
    save(options.out, options.name, made, lines)


if __name__ == "__main__":
    main()

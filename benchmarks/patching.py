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
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import DTYPES, SHAPES, machine, random_model, table, wait

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


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = call()
    wait()
    return time.perf_counter() - start, found


def loaded(reference: str, device: str, dtype: torch.dtype) -> tuple[str, Any, Any]:
    """Name, model and tokenizer of a checkpoint, or of a shape's random weights, which read the
    small world's words."""
    from workbench.lab import shipped
    from workbench.loaders import Checkpoint

    if reference in SHAPES:
        return reference, random_model(reference, dtype, device), shipped.tokenizer()
    checkpoint = Checkpoint.parse(reference)
    return checkpoint.name, checkpoint.load(device, dtype), checkpoint.tokenizer()


def measure(reference: str, n: int, count: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """One model's row: seconds, ratios to ours, largest differences, and costs."""
    from workbench.models import Layout, nnsight, transformer_lens
    from workbench.patching.path import effects
    from workbench.patching.sweep import Side
    from workbench.tasks.batching import batch, rows

    name, model, words = loaded(reference, device, dtype)
    clean, dirty = (rows(words, one, answers=True) for one in prompts_for(words, n, count))
    one, other = (batch(rows_, range(len(rows_)), device, 0) for rows_ in (clean, dirty))
    metric, layout = difference(clean), Layout(model)
    took, (scores, forwards) = timed(lambda: ours(model, words, clean, dirty, device, ROWS))
    bridge = transformer_lens.bridge(model, words)
    lens_took, lens = timed(lambda: theirs_lens(bridge, one, other, metric))
    sight = nnsight.wrap(model)
    nn_took, nn = timed(lambda: theirs_nnsight(sight, layout, one, other, metric))
    _, path_cost = effects(
        Side(model, clean), Side(model, dirty), words, shuffled=False, device=device
    )
    heads = layout.layers * layout.heads
    return {
        "model": name, "prompts": len(clean), "tokens": scores.shape[1],
        "patches": scores.numel(), "ours_s": took, "ours_forwards": forwards,
        "transformer_lens_s": lens_took, "ratio_transformer_lens": lens_took / took,
        "nnsight_s": nn_took, "ratio_nnsight": nn_took / took,
        "difference_transformer_lens": float((scores - lens).abs().max()),
        "difference_nnsight": float((scores - nn).abs().max()),
        "path_heads": heads, "path_forwards": path_cost, "path_naive": 2 * heads + 2,
    }  # fmt: skip


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
    parser.add_argument("--name", default="patching")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if not options.model + options.shape:
        parser.error("give at least one --model or --shape")
    found, dtype = [], getattr(torch, options.dtype)
    for reference in [*options.model, *options.shape]:
        found.append(measure(reference, options.prompts, options.boxes, options.device, dtype))
        print(json.dumps(found[-1]), flush=True)
    about = machine(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    made = {"machine": about, "rows": found}
    (options.out / f"{options.name}.json").write_text(json.dumps(made, indent=1))
    columns = [
        "model", "prompts", "tokens", "patches", "ours_s", "transformer_lens_s", "nnsight_s",
        "ratio_transformer_lens", "ratio_nnsight", "difference_transformer_lens",
        "difference_nnsight",
    ]  # fmt: skip
    costs = ["model", "path_heads", "path_forwards", "path_naive"]
    lines = [
        f"Residual sweeps, every layer and token: {about['cpu']}, {about['threads']} threads, "
        f"torch {about['torch']}, {about['device']}, {options.dtype}, {about['date']}.", "",
        *table(found, columns), "",
        "Path patching of all heads to the logits at the last token, in plain forward passes:", "",
        *table(found, costs),
    ]  # fmt: skip
    (options.out / f"{options.name}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

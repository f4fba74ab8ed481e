"""Where does the behaviour live? Activations and parameters of one run put into another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.shared import (
    Base,
    Batch,
    Device,
    Dtype,
    Json,
    Save,
    Seed,
    Tuned,
    asked,
    finish,
    running,
    words,
)

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Prompts = Annotated[Path, typer.Option(help="Prompts with answers, JSONL or CSV.")]
Corrupted = Annotated[
    Path | None, typer.Option(help="A corrupt partner for each prompt; default: made, for boxes.")
]
Sites = Annotated[
    str, typer.Option(help="Comma-separated: kinds (resid_post, z, head, neuron), or 4.z.h3@-1.")
]
Positions = Annotated[
    str, typer.Option(help="Comma-separated: named, all, each, -1, or a span's name.")
]
Sides = Annotated[str, typer.Option(help="base, tuned, or base,tuned.")]
Large = Annotated[
    bool, typer.Option("--large", help="Run what is planned to take over an hour, or much memory.")
]
Window = Annotated[int, typer.Option(help="Layers patched together, odd.")]


@app.command()
def activation(
    base: Base,
    tuned: Tuned,
    prompts: Prompts,
    corrupted: Corrupted = None,
    sites: Sites = "resid_pre",
    positions: Positions = "named",
    sides: Sides = "base,tuned",
    noising: Annotated[bool, typer.Option(help="Corrupt into clean, not the reverse.")] = False,
    window: Window = 1,
    batch_size: Batch = 32,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    large: Large = False,
) -> None:
    """Clean and corrupt prompts: which places carry what the answer hangs on, in each model?

    Example: workbench patch activation BASE TUNED --prompts boxes.jsonl --sites resid_pre,z
    """
    import workbench as wb

    result = wb.patching.activation(
        wb.load_pair(base, tuned),
        asked(prompts),
        corrupted=_set(corrupted),
        sites=words(sites),
        positions=_places(positions),
        sides=words(sides),
        direction="noising" if noising else "denoising",
        window=window,
        large=large,
        **running(batch_size, device, dtype, seed),
    )
    finish(result, out, json)


@app.command()
def cmap(
    base: Base,
    tuned: Tuned,
    prompts: Prompts,
    sites: Sites = "resid_post,attn_out,mlp_out",
    positions: Positions = "all",
    direction: Annotated[str, typer.Option(help="tuned->base, base->tuned or both.")] = "both",
    window: Window = 1,
    cumulative: Annotated[bool, typer.Option(help="Every layer up to each.")] = False,
    own_answer: Annotated[
        bool, typer.Option(help="Score what the base itself says, not the targets (unlearning).")
    ] = False,
    batch_size: Batch = 32,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    large: Large = False,
) -> None:
    """Cross-model patching, arXiv 2402.14811: one model with the other's activations.

    Example: workbench patch cmap BASE TUNED --prompts task.jsonl --sites resid_post,head
    """
    import workbench as wb

    options: dict[str, Any] = {"direction": direction, "window": window, "cumulative": cumulative}
    result = wb.patching.cross_model(
        wb.load_pair(base, tuned),
        asked(prompts),
        sites=words(sites),
        positions=_places(positions),
        answer="base" if own_answer else "target",
        **options,
        large=large,
        **running(batch_size, device, dtype, seed),
    )
    finish(result, out, json)


@app.command()
def restore(
    base: Base,
    tuned: Tuned,
    prompts: Prompts,
    components: Annotated[
        str, typer.Option(help="layer, matrix, or names such as mlp.down_proj.")
    ] = "layer",
    direction: Annotated[str, typer.Option(help="tuned->base or base->tuned.")] = "tuned->base",
    window: Window = 1,
    own_answer: Annotated[
        bool, typer.Option(help="Score what the base itself says, not the targets (unlearning).")
    ] = False,
    batch_size: Batch = 32,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    large: Large = False,
) -> None:
    """Parameter restoration, arXiv 2410.06606: one model with some of the other's matrices.

    Example: workbench patch restore BASE TUNED --prompts task.jsonl --components matrix
    """
    import workbench as wb

    options: dict[str, Any] = {"direction": direction, "window": window}
    result = wb.patching.restore(
        wb.load_pair(base, tuned),
        asked(prompts),
        components=components if components in ("layer", "matrix") else words(components),
        answer="base" if own_answer else "target",
        **options,
        large=large,
        **running(batch_size, device, dtype, seed),
    )
    finish(result, out, json)


@app.command()
def path(
    base: Base,
    tuned: Tuned,
    prompts: Prompts,
    corrupted: Corrupted = None,
    receivers: Annotated[str, typer.Option(help="logits, or heads LAYER.HEAD,...")] = "logits",
    part: Annotated[str, typer.Option(help="q, k or v of the receivers.")] = "v",
    position: Annotated[str, typer.Option(help="all, -1, or a span's name.")] = "-1",
    sides: Sides = "base,tuned",
    batch_size: Batch = 32,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    large: Large = False,
) -> None:
    """Path patching: which heads act through the logits, or other heads' queries, keys, values?

    Example: workbench patch path BASE TUNED --prompts boxes.jsonl --receivers 3.0,3.2 --part q
    """
    import workbench as wb

    options: dict[str, Any] = {"part": part, "position": _place(position)}
    result = wb.patching.path(
        wb.load_pair(base, tuned),
        asked(prompts),
        corrupted=_set(corrupted),
        receivers="logits" if receivers == "logits" else _heads(receivers),
        sides=words(sides),
        **options,
        large=large,
        **running(batch_size, device, dtype, seed),
    )
    finish(result, out, json)


@app.command()
def circuit(
    base: Base,
    tuned: Tuned,
    prompts: Prompts,
    corrupted: Corrupted = None,
    most: Annotated[int, typer.Option(help="Heads per group at most.")] = 8,
    keep: Annotated[
        str,
        typer.Option(help='A circuit\'s heads at their group\'s "position" only, or "everywhere".'),
    ] = "position",
    random: Annotated[int, typer.Option(help="Random circuits of the same size.")] = 10,
    theirs: Annotated[
        Path | None, typer.Option(help="Saved circuit Result whose circuits are judged here too.")
    ] = None,
    batch_size: Batch = 32,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    large: Large = False,
) -> None:
    """Find both sides' circuits for boxes prompts, and judge each in both.

    Example: workbench patch circuit BASE TUNED --prompts boxes.jsonl --out circuits
    """
    import workbench as wb

    known = wb.patching.circuits_of(wb.Result.load(theirs)) if theirs else {}
    result = wb.patching.circuit(
        wb.load_pair(base, tuned),
        asked(prompts),
        corrupted=_set(corrupted),
        circuits={f"theirs: {name}": own for name, own in known.items()} or None,
        most=most,
        keep=keep,  # pyright: ignore[reportArgumentType]
        random=random,
        large=large,
        **running(batch_size, device, dtype, seed),
    )
    finish(result, out, json)


@app.command()
def mask(
    base: Base,
    tuned: Tuned,
    kind: Annotated[
        str, typer.Option(help="object value, box label or positional.")
    ] = "object value",
    n: Annotated[int, typer.Option(help="Pairs of prompts, half of them to learn from.")] = 200,
    count: Annotated[int, typer.Option(help="Boxes a prompt.")] = 7,
    natural: Annotated[
        bool, typer.Option(help="Ordinary English spacing, for a subword tokenizer.")
    ] = False,
    component: Annotated[str, typer.Option(help="head, mlp or neuron.")] = "head",
    position: Annotated[str, typer.Option(help="all, -1, or a span's name.")] = "-1",
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    large: Large = False,
) -> None:
    """Desiderata-based masks: which components carry an object, a label or a position?

    Example: workbench patch mask BASE TUNED --kind "box label" --count 5
    """
    import workbench as wb

    pair = wb.load_pair(base, tuned)
    words = pair.base.tokenizer() if natural else None
    options: dict[str, Any] = {"component": component, "device": device, "dtype": dtype}
    pairs = wb.tasks.desiderata(kind, n, seed=seed, count=count, tokenizer=words)
    where = _place(position)
    options |= {"seed": seed, "large": large}
    finish(wb.patching.mask(pair, pairs, position=where, **options), out, json)


@app.command()
def attribution(
    base: Base,
    tuned: Tuned,
    prompts: Prompts,
    corrupted: Corrupted = None,
    sites: Sites = "z,mlp_out",
    positions: Positions = "named",
    sides: Sides = "base,tuned",
    across: Annotated[bool, typer.Option(help="Also tuned into base, on the same prompts.")] = True,
    steps: Annotated[int, typer.Option(help="Integrated gradients' steps; 1: one gradient.")] = 1,
    edges: Annotated[bool, typer.Option(help="Edges between components too.")] = False,
    exact: Annotated[int, typer.Option(help="Entries patched exactly, top and random.")] = 20,
    batch_size: Batch = 16,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    large: Large = False,
) -> None:
    """All places at once by gradients, their top ones checked by exact patches.

    Example: workbench patch attribution BASE TUNED --prompts boxes.jsonl --edges
    """
    import workbench as wb

    result = wb.patching.attribution(
        wb.load_pair(base, tuned),
        asked(prompts),
        corrupted=_set(corrupted),
        sites=words(sites),
        positions=_places(positions),
        sides=words(sides),
        across=across and steps == 1,
        steps=steps,
        edges=edges,
        exact=exact,
        large=large,
        **running(batch_size, device, dtype, seed),
    )
    finish(result, out, json)


@app.command()
def lens(
    base: Base,
    tuned: Tuned,
    prompts: Prompts,
    batch_size: Batch = 32,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """The logit lens of both models: at which layer does each come to its answer?

    Example: workbench patch lens BASE TUNED --prompts task.jsonl
    """
    import workbench as wb

    pair, given = wb.load_pair(base, tuned), asked(prompts)
    finish(wb.patching.lens(pair, given, **running(batch_size, device, dtype, seed)), out, json)


@app.command()
def patterns(
    base: Base,
    tuned: Tuned,
    prompts: Prompts,
    batch_size: Batch = 16,
    out: Save = None,
    json: Json = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """Which heads look elsewhere after fine-tuning?

    Example: workbench patch patterns BASE TUNED --prompts task.jsonl
    """
    import workbench as wb

    pair, given = wb.load_pair(base, tuned), asked(prompts)
    finish(wb.patching.patterns(pair, given, **running(batch_size, device, dtype, seed)), out, json)


def _set(path: Path | None) -> Any:

    return None if path is None else asked(path)


def _places(text: str) -> Any:
    """ "named" as it is; else a list of names and of counts from the prompt's ends."""
    if text == "named":
        return text
    return [int(w) if w.lstrip("-").isdigit() else w for w in words(text)]


def _place(text: str) -> Any:
    """One position; None for all tokens."""
    from workbench.errors import WorkbenchError

    found = _places(text)
    if len(found) != 1 or text == "named":
        raise WorkbenchError(f"Expected one position (all, -1, or a span's name), found {text!r}.")
    return None if found[0] == "all" else found[0]


def _heads(text: str) -> list[tuple[int, int]]:
    from workbench.errors import WorkbenchError

    found = []
    for word in words(text):
        layer, dot, head = word.partition(".")
        if not (dot and layer.isdigit() and head.isdigit()):
            raise WorkbenchError(f"Expected heads as LAYER.HEAD, e.g. 3.0,3.2; found {word!r}.")
        found.append((int(layer), int(head)))
    return found

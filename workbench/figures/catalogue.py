"""Which figures are there, how is each read, and when does it mislead? The figures as data."""

from __future__ import annotations

import inspect
import io
import json
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.errors import WorkbenchError
from workbench.figures import (
    associated,
    behaviour,
    delta,
    equivalence,
    forgetting,
    forgotten,
    grafted,
    intruders,
    located,
    similarity,
    style,
    sweep,
    training,
    tuco,
)
from workbench.figures.drawing import Drawing, has
from workbench.files.writing import Mark, require_free, says, writing
from workbench.results.result import Result


def _share(count: int) -> Callable[[Result, Result], bool]:
    return lambda one, other: len(set(one.members) & set(other.members)) >= count


CATALOGUE: tuple[Drawing, ...] = (
    *equivalence.DRAWINGS,
    Drawing(
        intruders.KEY,
        "count",
        "Intruder dimensions against the threshold",
        intruders.intruders_by_eps,
        "Share of the top singular vectors whose largest cosine with any base singular vector is "
        "below ε; the thin vertical line is the ε of this run. A member whose line leaves its "
        "dashed nulls (a random change of the same norm; random LoRA factors of the same norm and "
        "rank) at small ε has directions that a random change does not explain.",
        "Near-equal singular values of the base make vectors rotate freely among themselves and "
        "count as intruders without any new direction: read the participation ratio beside it. "
        "The count says nothing of how strong an intruder is, and depends on k.",
    ),
    Drawing(
        intruders.KEY,
        "places",
        "Where the intruders are",
        intruders.intruders_by_place,
        "Intruders among the top vectors of every matrix, layers upwards; one map per member on "
        "one colour scale, the last map is the null averaged over members. Pale cells: no such "
        "matrix; one that did not change has none.",
        "Matrices differ in shape and spectrum, so equal counts need not be equally surprising; "
        "compare a cell with the same cell of the null, not with its neighbour.",
    ),
    Drawing(
        intruders.KEY,
        "training",
        "The strongest intruder over training",
        training.training_steps,
        "Per run, the matrix whose last checkpoint holds the strongest intruder: strength is "
        "(1 − max cosine²) · σ / σ₁ among the top vectors. Numbers beside σ are its index (1 = "
        "largest). Dashed: max cosine of the null, and the base's score.",
        "The matrix is chosen because its intruder ended strongest, so it is the extreme and not "
        "the typical case; from one step to the next the strongest vector may be another one.",
        companion=forgetting.KEY,
        alone=True,
        applies=lambda one, *others: training.has_steps(one),
    ),
    Drawing(
        intruders.KEY,
        "forgetting",
        "Forgetting against intruders",
        forgetting.forgetting_by_intruders,
        "Each member's change of pre-training loss (95% interval over texts) against its number of "
        "intruders; hollow: the same members at their null's count. Spearman's ρ above, for both.",
        "A handful of members gives a ρ that one more could overturn, and rank, learning rate and "
        "norm of the change move both axes: it is an association. Only the λ sweep intervenes.",
        companion=forgetting.KEY,
        applies=_share(3),
    ),
    Drawing(
        similarity.KEY,
        "matrix",
        "Tuned against base singular vectors",
        similarity.similarity_matrix,
        "Absolute cosine between every tuned (y) and base (x) left singular vector: the top ones, "
        "and all of them (each dot the maximum of its block). A kept direction is a bright cell on "
        "the diagonal, a moved one a bright cell off it, an intruder a row without one. The dashed "
        "mark on the colour bar is what a random direction reaches.",
        "Unless one was asked for, this is the matrix with the weakest match in any member, not a "
        "typical one. Blocks of near-equal singular values look blurred without any new direction.",
    ),
    Drawing(
        delta.KEY,
        "spectrum",
        "Singular values of the change",
        delta.delta_spectra,
        "Singular values of ΔW over the largest of the same matrix: median and quartiles over "
        "matrices. A line that falls early is a change of few directions. Dashed: a square matrix "
        "of independent random entries.",
        "Scaled by each matrix's largest value, it hides how large the change is; at large index "
        "only the large matrices are left in the median; below about 1e-6 there is only rounding.",
        applies=has("sigma"),
    ),
    Drawing(
        delta.KEY,
        "effective-rank",
        "Effective rank of the change",
        delta.effective_ranks,
        "exp of the entropy of σ / Σσ of ΔW: a point per matrix, a bar at the median. Dashed: for "
        "a LoRA its rank r, which it cannot exceed; for a full member the effective rank of a "
        "random square matrix of the middle size.",
        "It counts directions whatever they do: half-precision rounding of a checkpoint alone "
        "gives a nearly full effective rank. Compare it with the relative norm and the energy in "
        "the first values.",
        applies=delta.has_ranks,
    ),
    Drawing(
        sweep.KEY,
        "sweep",
        "Scaling the intruders",
        sweep.scale_sweep,
        "The singular value of the top (or every) intruder multiplied by λ, everything else kept: "
        "change of the task score (left; lower is worse) and of the pre-training loss (right; "
        "lower is better) against λ = 1, bands 95% intervals. Intruders cause forgetting where "
        "their loss falls below λ = 1 while the dashed controls at the same λ do not.",
        "A neighbouring pre-trained vector of similar σ carries the base's own knowledge, so its "
        "loss rises on either side; the arms differ in the norm they remove, and only the shrink "
        "arm is matched in it. Shared prompts make the bands of the arms dependent.",
    ),
    Drawing(
        forgetting.KEY,
        "rank",
        "Forgetting against LoRA rank",
        forgetting.forgetting_by_rank,
        "Change of loss on held-out text like the pre-training corpus (left) beside the score on "
        "the fine-tuned task (right), full fine-tuning at the right end; bars are 95% intervals "
        "over texts and prompts, the dashed line is the base.",
        "Members are comparable only where the task score beside is: a rank that learned less "
        "forgets less. Intervals are over items of one training run, not over seeds.",
        applies=has("loss_change"),
    ),
    Drawing(
        tuco.KEY,
        "groups",
        "Contribution of fine-tuning by group of prompts",
        tuco.tuco_by_group,
        "TuCo of every prompt (dots), with each group's mean and 95% interval. The number above a "
        "group is the chance that a prompt of the first group has the larger TuCo (AUC; 0.5 is a "
        "random order). Dashed: the base against itself, which has TuCo 0.",
        "Prompts of other length or perplexity have another TuCo for that alone: the table's "
        "auc_matched compares only prompts that agree in both. Contributions of several layers "
        "that cancel do not show, nor do changes of embedding, final norm and head.",
    ),
    Drawing(
        tuco.KEY,
        "layers",
        "Contribution of fine-tuning by layer",
        tuco.tuco_by_layer,
        "Size of the fine-tuning part of each block's output over both parts, |FTC| / (|PTC| + "
        "|FTC|), at the last prompt token: mean and 95% interval over prompts.",
        "Layers that add large vectors count no more here than layers that add small ones, while "
        "in TuCo they do; the sum over layers is a sum of vectors, not of these bars.",
    ),
    Drawing(
        tuco.KEY,
        "tokens",
        "Contribution of fine-tuning token by token",
        tuco.tuco_by_token,
        "TuCo at every token of one prompt per group, as if the prompt ended there; a row per "
        "member, one colour scale.",
        "One prompt each, not an average. The first tokens carry massive activations in many "
        "models, against which any contribution looks small.",
        applies=has("token_tuco"),
    ),
    Drawing(
        tuco.KEY,
        "output",
        "TuCo against the difference of the outputs",
        tuco.tuco_against_output,
        "A point per prompt: TuCo against OutputCo, the difference of the two models' final "
        "streams, which needs no decomposition. Above each panel the AUC of the first group over "
        "the second by either: TuCo earns its cost where it separates better.",
        "OutputCo compares two models that have drifted apart layer by layer, TuCo the two halves "
        "of one; large values of one and small of the other are no contradiction.",
        applies=has("output_co"),
    ),
    Drawing(
        tuco.SCALING,
        "alpha",
        "Scaling the contribution of fine-tuning",
        tuco.scaling_curve,
        "Scores when every block's fine-tuning contribution is multiplied by α, with 95% intervals "
        "over prompts; the ring marks the α that was best on a random half of the prompts. At 1 "
        "the model as tuned, at 0 the base's blocks.",
        "The best of several α always looks good where it was chosen: what it gains is the table's "
        "gain on the other half. α reaches neither embedding nor head.",
    ),
    *located.DRAWINGS,
    *grafted.DRAWINGS,
    *forgotten.DRAWINGS,
    *associated.DRAWINGS,
    *behaviour.DRAWINGS,
)


def draw(
    result: Result,
    ax: Axes | None = None,
    *,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    **options: Any,
) -> Figure:
    """The first figure of `result`'s analysis; options are those of its function.

    figsize: width and height in inches, of a figure of its own. title: above all of it, or above
    `ax`. Raises WorkbenchError where no figure shows such a result, or it has no such option.
    """
    if ax is not None and not isinstance(ax, Axes):
        raise WorkbenchError(f"Expected the axes to draw in, or nothing, found {ax!r}.")
    if ax is not None and figsize is not None:
        raise WorkbenchError("Expected figsize, of a new figure, or ax, to draw in; found both.")
    for drawing in CATALOGUE:
        alone = not drawing.companion or drawing.alone
        if drawing.analysis == result.analysis and alone and drawing.applies(result):
            require_options(drawing, options)
            return _titled(drawing.draw(result, ax=ax, **options), ax, figsize, title)
    known = sorted({drawing.analysis for drawing in CATALOGUE})
    raise WorkbenchError(f"No figure of {result.analysis!r} is known; there are those of {known}.")


def require_options(drawing: Drawing, options: Mapping[str, Any]) -> None:
    """Raise WorkbenchError for an option that a figure does not have."""
    known = [
        name
        for name, one in inspect.signature(drawing.draw).parameters.items()
        if one.kind is one.KEYWORD_ONLY
    ]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise WorkbenchError(
            f"Figure {drawing.name} has no option {unknown[0]!r}; it has "
            f"{', '.join([*known, 'figsize', 'title'])}."
        )


def _titled(
    figure: Figure, ax: Axes | None, size: tuple[float, float] | None, title: str | None
) -> Figure:
    if size is not None:
        figure.set_size_inches(*size)
    if title is not None and ax is not None:
        ax.set_title(title)
    elif title is not None:
        figure.suptitle(title)
    return figure


def drawings(
    result: Result, results: Sequence[Result]
) -> Iterator[tuple[Drawing, tuple[Result, ...]]]:
    """Every figure that `result` can be drawn as, with the Results it takes.

    results: where a companion is looked for; it is the one of the same base that shares the most
    members.
    """
    for drawing in CATALOGUE:
        if drawing.analysis != result.analysis:
            continue
        group: tuple[Result, ...] = (result,)
        if drawing.companion:
            others = [
                other
                for other in results
                if other.analysis == drawing.companion
                and other.provenance.base == result.provenance.base
                and set(other.members) & set(result.members)
            ]
            if others:
                group += (max(others, key=lambda o: len(set(o.members) & set(result.members))),)
            elif not drawing.alone:
                continue
        if drawing.applies(*group):
            yield drawing, group


def everyone(results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """Member -> what is known of it, over all `results`."""
    members: dict[str, dict[str, Any]] = {}
    for result in results:
        for name, about in result.provenance.members.items():
            members[name] = members.get(name, {}) | dict(about)
    return members


def metadata(title: str, results: Sequence[Result]) -> dict[str, str]:
    """What a file of a figure says of itself: Title, and Keywords (JSON) with the analyses and the
    fingerprints of their tables, of the base and of every member. Nothing that another day, folder
    or version would change."""
    prints = {name: about.get("fingerprint") for name, about in everyone(results).items()}
    keywords = {
        "analyses": [result.analysis for result in results],
        "tables": [result.fingerprint for result in results],
        "base": results[0].provenance.base.get("fingerprint"),
        "members": prints,
    }
    return {"Title": title, "Keywords": json.dumps(keywords)}


# What matplotlib would add of itself and of the moment.
UNSAID: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


# By the keywords of `metadata`.
FIGURE = Mark("a figure", says(b'"analyses": [', b'"tables": ['))


def write(
    figure: Figure,
    target: Path | BinaryIO,
    about: dict[str, str],
    *,
    format: str = "png",
    dpi: int = style.DPI,
) -> None:
    """`figure` as PNG or PDF with `about` as its metadata, the same bytes each time."""
    with mpl.rc_context(style.RC):
        figure.savefig(target, format=format, dpi=dpi, metadata=about | UNSAID[format])


def png(figure: Figure, about: dict[str, str]) -> bytes:
    """`figure` as the bytes of a PNG file."""
    buffer = io.BytesIO()
    write(figure, buffer, about)
    return buffer.getvalue()


def named(results: Mapping[str, Result] | Sequence[Result]) -> dict[str, Result]:
    """Results by what the files of their figures are called: a mapping as it is; else the analysis,
    and ANALYSIS-2 for the second one of it."""
    if isinstance(results, Mapping):
        return dict(results)
    found: dict[str, Result] = {}
    seen: Counter[str] = Counter()
    for result in results:
        seen[result.analysis] += 1
        occurrence = seen[result.analysis]
        found[result.analysis + (f"-{occurrence}" if occurrence > 1 else "")] = result
    return found


def save_all(
    results: Mapping[str, Result] | Sequence[Result],
    folder: str | Path,
    *,
    formats: Sequence[str] = ("png", "pdf"),
    workers: int = 1,
) -> list[Path]:
    """Every figure of `results` as PNG and PDF in `folder`, members alike in all; their paths.

    Files are NAME.FIGURE.png and .pdf, NAME as `named` gives it. workers: processes that draw; with
    several a script must call this under `if __name__ == "__main__":`.
    """
    album = Album(named(results), Path(folder), tuple(formats))
    wanted = album.wanted()
    for one in wanted:
        for path in album.paths(*one):
            require_free(path, FIGURE)
    if min(workers, len(wanted)) < 2:
        return [path for one in wanted for path in album.save(*one)]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(wanted)), spawn, _open, (album,)) as pool:
        return [path for paths in pool.map(_save, wanted) for path in paths]


class Album(NamedTuple):
    """Results by name, whose figures go to a folder."""

    results: Mapping[str, Result]
    folder: Path
    formats: tuple[str, ...]

    def wanted(self) -> list[tuple[str, str]]:
        """(name of a Result, name of a figure) of every figure there is."""
        return [
            (name, drawing.name)
            for name, result in self.results.items()
            for drawing, _ in drawings(result, list(self.results.values()))
        ]

    def paths(self, name: str, figure: str) -> list[Path]:
        """The files of one of them."""
        return [self.folder / f"{name}.{figure}.{format}" for format in self.formats]

    def save(self, name: str, figure: str) -> list[Path]:
        """Draw one of them; the paths of its files."""
        everything, paths = list(self.results.values()), self.paths(name, figure)
        (drawing, group), *_ = (
            one for one in drawings(self.results[name], everything) if one[0].name == figure
        )
        with style.family(everyone(everything)):
            drawn, about = drawing.draw(*group), metadata(drawing.title, group)
            for format, path in zip(self.formats, paths, strict=True):
                with writing(path, FIGURE) as fresh:
                    write(drawn, fresh, about, format=format)
        return paths


_OPENED: list[Album] = []  # in a process that draws


def _open(album: Album) -> None:
    _OPENED.append(album)


def _save(one: tuple[str, str]) -> list[Path]:
    return _OPENED[-1].save(*one)

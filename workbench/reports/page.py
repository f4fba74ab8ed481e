"""What did fine-tuning do, on one page that can be sent on? Results to one self-contained HTML."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import pandas as pd

from workbench import figures
from workbench.errors import WorkbenchError, visible
from workbench.figures import style
from workbench.figures.catalogue import HEADINGS
from workbench.files.writing import Mark, says, writing
from workbench.results import intruder_counts
from workbench.results.changed_items import changed_items
from workbench.results.result import Result, changed_rows, how_many_changed
from workbench.results.run_folder import QUESTION

FIRST = "compare.equivalence"
# What tells means apart, and places of patches.
KEYS = (
    "member", "side", "direction", "circuit", "group", "first", "second", "skills", "task", "arm",
    "rank", "sparsity", "x", "layer", "component",
)  # fmt: skip
# Of grafts, on the page; places and reliability bins are in the figures.
GRAFTED = (
    "score", "gain", "agreement", "ece", "accuracy", "brier", "free", "harmful", "overlap",
    "within", "places", "interference", "score_change", "log_probability_change",
)  # fmt: skip
SCORES = (
    "score", "score_change", "lost", "gained", "lost_adjusted", "gained_adjusted", "mcnemar",
    "chance",
)  # fmt: skip
PLACES = ("side", "direction", "component", "group", "layer", "head", "neuron", "position")
STRONGEST = ("krs", "recovered:logit_difference", "recovered:log_probability")
SHOWN = 6  # places per member and side
X = {"spectral.scale": "lambda", "tuco.scaling": "alpha"}
ABOUT = ("kind", "rank", "alpha", "step", "seed", "reference", "fingerprint")
SHORT = 12  # characters of a fingerprint
LONG = 16  # rows above which a table is folded away
MOST = 600  # rows above which a table is left to the Result's own file


@dataclass(frozen=True)
class Table:
    """A table as the page shows it: text in every cell."""

    caption: str
    columns: list[str]
    rows: list[list[str]]

    @property
    def folded(self) -> bool:
        return len(self.rows) > LONG


def report(
    results: Mapping[str, Result] | Sequence[Result | str | Path],
    path: str | Path,
    *,
    title: str = QUESTION,
    preflight: pd.DataFrame | None = None,
    notes: Sequence[str] = (),
    failures: Sequence[str] = (),
    pictures: str | Path | None = None,
    command: str = "",
    asked: Sequence[str] = (),
) -> Path:
    """Write one HTML page of `results`, with every figure, table and provenance in it; its path.

    results: Results, or folders that `Result.save` wrote, in the order of the sections; one
    analysis may occur more than once; or Results by name, see `figures.named`. preflight: the table
    of `pair.check()` (item, status, found, remedy), of several members with a column member. notes:
    said on the first page, beside those that several Results have; the others stand with the one
    Result they are of. failures: what could not be run, a sentence each. pictures: the folder where
    `figures.save_all` just drew these very results; None draws them. command: what makes all of
    them again; by default the commands that each Result was made by. asked: the first prompts as
    the tokenizer read them. Whether LoRA and full fine-tuning are equivalent
    (`workbench.findings.equivalence`) is answered first of all, where the results hold that.
    The page needs nothing else: images are in it, it loads nothing and runs no script.
    Raises WorkbenchError where there are no results or they are of different bases.
    """
    given = list(results.values()) if isinstance(results, Mapping) else list(results)
    read = [one if isinstance(one, Result) else Result.load(one) for one in given]
    names = list(figures.named(results if isinstance(results, Mapping) else read))
    loaded = dict(zip(names, read, strict=True))
    if not loaded:
        raise WorkbenchError("Expected at least one Result to report on, found none.")
    told = [json.dumps(r.provenance.base, sort_keys=True, default=str) for r in read]
    # One base may have been given by several paths.
    bases = {r.provenance.base.get("fingerprint", t): t for r, t in zip(read, told, strict=True)}
    if len(bases) > 1:
        raise WorkbenchError(
            f"Expected Results of one base checkpoint, found {len(bases)} bases: "
            f"{'; '.join(sorted(bases.values()))}; write one report per base."
        )
    members = figures.everyone(read)
    with style.family(members):
        sections = [
            _checked(name, loaded, pictures, source)
            for name, source in zip(names, given, strict=True)
        ]
    often = Counter(note for result in read for note in result.provenance.notes)
    shared = list(dict.fromkeys([*notes, *(note for note, times in often.items() if times > 1)]))
    page = _template().render(
        title=title,
        question=QUESTION,
        base=read[0].provenance.base,
        family=_family(members),
        colours=[style.assign(members)[name].colour for name in members],
        preflight=[] if preflight is None else _preflight(preflight),
        notes=shared,
        failures=failures,
        asked=asked,
        commands=[command] if command else list(dict.fromkeys(r.provenance.command for r in read)),
        sections=sections,
        short=SHORT,
    )
    with writing(Path(path), PAGE) as fresh:
        fresh.write_text(page, encoding="utf-8")
    return Path(path)


PAGE = Mark("a report", says(b'<meta name="generator" content="workbench">'))


def _seen(value: Any) -> Any:
    """A value of the page without characters that turn its direction or are none in a page."""
    plain = isinstance(value, str) and not isinstance(value, markupsafe.Markup)
    return visible(value) if plain else value


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names and paths are anyone's text
        undefined=jinja2.StrictUndefined,
        finalize=_seen,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja")


def _family(members: Mapping[str, Mapping[str, Any]]) -> Table:
    """Member, and what is known of it; columns that no member fills are left out."""
    known = [key for key in ABOUT if any(about.get(key) is not None for about in members.values())]
    rows = []
    for name, about in members.items():
        cells = ["" if about.get(key) is None else str(about[key]) for key in known]
        if "fingerprint" in known:
            cells[known.index("fingerprint")] = cells[known.index("fingerprint")][:SHORT]
        rows.append([name, *cells])
    return Table("The members", ["member", *known], rows)


def _preflight(lines: pd.DataFrame) -> list[Table]:
    """What needs a reader, then what is in order (folded away where it is long)."""
    order = [name for name in ("item", "status", "member", "found", "remedy") if name in lines]
    fine = lines["status"] == "ok"
    parts = (("What needs a reader", lines[~fine]), ("What is in order", lines[fine]))
    return [_cells(caption, part[order]) for caption, part in parts if len(part)]


def _checked(
    name: str,
    results: Mapping[str, Result],
    pictures: str | Path | None,
    given: Result | str | Path,
) -> dict[str, Any]:
    """`_section`. Raises WorkbenchError where a folder holds another table than the analysis it
    names makes; only that analysis knows all that belongs in it."""
    try:
        return _section(name, results, pictures)
    except WorkbenchError:
        raise
    except Exception as error:
        if isinstance(given, Result):
            raise
        raise WorkbenchError(
            f"The Result in {given} is not one that {results[name].analysis} makes "
            f"({type(error).__name__}: {error}); run that analysis anew."
        ) from error


def _section(
    name: str, results: Mapping[str, Result], pictures: str | Path | None
) -> dict[str, Any]:
    """Everything the template shows of one Result."""
    result = results[name]
    provenance = result.provenance
    lead, parts = figures.findings(result)
    heading = HEADINGS.get(result.analysis, result.analysis)
    if provenance.parameters.get("groups"):
        heading += ", by groups of heads"
    if sum(other.analysis == result.analysis for other in results.values()) > 1:
        ends = list(dict.fromkeys((result.members[0], result.members[-1])))
        asked = provenance.parameters.get("prompts")
        task = asked.get("name") if isinstance(asked, Mapping) else None
        heading += f": {' to '.join(ends)}" + (f" on {task}" if task else "")
    about = {
        "analysis": result.analysis,
        "members": ", ".join(result.members),
        "seed": provenance.seed,
        "device": provenance.device,
        "dtype": provenance.dtype,
        "created": provenance.created,
    }
    seed = "" if provenance.seed is None else f", seed {provenance.seed}"
    about |= {f"parameter {key}": _plain(v) for key, v in provenance.parameters.items()}
    about |= {f"version of {key}": v for key, v in provenance.versions.items()}
    return {
        "id": f"analysis-{list(results).index(name) + 1}",
        "first": result.analysis == FIRST,
        "heading": heading,
        "lead": lead,
        "parts": parts,
        "notes": list(provenance.notes),
        "figures": list(_pictures(name, results, lead, pictures)),
        "tables": list(tables(result)),
        "provenance": [(name, "none" if v is None else str(v)) for name, v in about.items()],
        "origin": f"{provenance.device}, {provenance.dtype}{seed}",
        "rows": len(result.table),
    }


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _pictures(
    name: str, results: Mapping[str, Result], lead: str, folder: str | Path | None
) -> Iterator[dict[str, str | int]]:
    """Every figure of a Result as a data address, with the words that go with it."""
    for drawing, group in figures.drawings(results[name], list(results.values())):
        if folder is None:
            image = figures.png(drawing.draw(*group), figures.metadata(drawing.title, group))
        else:
            image = (Path(folder) / f"{name}.{drawing.name}.png").read_bytes()
        # A PNG's first chunk holds its width and height in pixels.
        width, height = (int.from_bytes(image[at : at + 4], "big") for at in (16, 20))
        yield {
            "title": drawing.title,
            "source": f"data:image/png;base64,{base64.b64encode(image).decode()}",
            "alt": f"{drawing.title}. {lead}; the numbers stand in this section's tables.",
            "width": round(width / style.DPI * style.PIXELS),
            "height": round(height / style.DPI * style.PIXELS),
            "caption": drawing.caption,
            "misleads": drawing.misleads,
        }


def tables(result: Result) -> Iterator[Table]:
    """The summary tables of one Result: per member, rounded; never its raw rows."""
    if result.analysis == FIRST:
        yield _equivalent(result)
    elif result.analysis == "spectral.intruders":
        yield from _counts(result)
    elif result.analysis.startswith("patching."):
        yield from _patched(result)
    elif result.analysis.startswith("skills."):
        yield from _grafted(result)
    elif result.has("item"):
        yield from _kept(result)
    elif "group" in result.table:
        yield from _groups(result)
    elif {"low", "high"} <= set(result.table):
        yield _means(result)
    else:
        yield _medians(result)


def _equivalent(result: Result) -> Table:
    """One row a member."""
    caption = (
        "= alike, ≠ different, ? undecided, against the full fine-tune (not the null); 95% "
        "intervals, Wilson's where all items of a proportion were alike"
    )
    wide = figures.cells(result).fillna("").reset_index(names="member")
    return _cells(caption, wide)


def _counts(result: Result) -> Iterator[Table]:
    """Intruders per member beside their nulls, and per member and component, at the run's eps."""
    counts = intruder_counts.intruder_counts(result)
    eps, k = counts[["eps", "k"]].iloc[0]
    changed = how_many_changed(result.table)
    rows = []
    for member in result.members:
        own = counts[counts["member"] == member].set_index("arm")
        tuned, (some, every) = own.loc[intruder_counts.TUNED], changed[member]
        nulls = {arm: own.loc[arm] for arm in intruder_counts.NULLS if arm in own.index}
        rows.append(
            {"member": member, "intruders": int(tuned["count"]), "of": int(tuned["n"])}
            | {"%": "–" if pd.isna(tuned["fraction"]) else f"{100 * tuned['fraction']:.1f}"}
            | {"matrices changed": f"{some} of {every}"}
            | {
                f"null: {intruder_counts.NULLS[arm]}": figures.interval(
                    null["count"], null["low"], null["high"], ".0f"
                )
                for arm, null in nulls.items()
            }
        )
    yield _cells(
        f"Intruders among the top {k:g} vectors at eps {eps:g}, in the matrices that changed",
        pd.DataFrame(rows),
    )
    by = intruder_counts.intruder_counts(result, by=("member", "component"))
    by = by[by["arm"] == intruder_counts.TUNED].astype({"count": int})
    places = by.pivot_table("count", "component", "member", sort=False)[result.members]
    yield _cells("Intruders by component, over all layers", places.reset_index())


def _patched(result: Result) -> Iterator[Table]:
    """The strongest places with their controls; what is not a place (scores of runs, circuits and
    masks, overlaps) as means."""
    table = result.table
    if "arm" not in table:
        table = table.assign(arm=None)
    own = table[table["metric"].isin(STRONGEST)]
    own = own[own["metric"] == own["metric"].iloc[0]] if len(own) else own
    keys = [key for key in PLACES if key in table and table[key].notna().any()]
    shown = [own[own["arm"] == "random"]]
    for _, rows in own[own["arm"] == "patch"].groupby(["member", keys[0]], sort=False):
        order = rows["value"].abs().sort_values(ascending=False).index
        shown.append(rows.loc[order[:SHOWN]])
    shown.append(own[own["arm"].isin(["picked", "shuffled"])])
    places = pd.concat(shown)
    if len(places):
        cells = [figures.interval(r.value, r.low, r.high) for r in places.itertuples(index=False)]
        metric = str(places["metric"].iloc[0])
        wide = places[["member", *keys, "arm"]].assign(**{metric: cells, "n": places["n"]})
        text = wide.astype(object).where(wide.notna(), "")
        yield _cells("The strongest patches and their controls, 95% intervals", text)
    whole = table[~table["metric"].isin(("chosen", "mask", "effect", "logit_change"))]
    for name in ("layer", "head", "neuron"):
        whole = whole[whole[name].isna()] if name in whole else whole
    if "component" in whole:
        whole = whole[whole["component"].isna() | (result.analysis == "patching.mask")]
    whole = whole[whole["n"].notna()].drop(columns=["component", "position"], errors="ignore")
    if len(whole):
        yield _means(replace(result, table=whole), "Whole runs")


def _grafted(result: Result) -> Iterator[Table]:
    """Scores of grafts on their own task's prompts, then on the others."""
    table = result.table[result.table["metric"].isin(GRAFTED)]
    own = table["own"].eq(True) if "own" in table else pd.Series(True, table.index)
    yield _means(replace(result, table=table[own]))
    if not own.all():
        yield _means(replace(result, table=table[~own]), "Other prompts")


def _kept(result: Result) -> Iterator[Table]:
    """Scores, losses and groups, then the items that were lost and won, as text."""
    table = result.table[result.table["metric"] != "item"]
    group = table["metric"].str.startswith("group_")
    score = table["metric"].isin(SCORES)
    for caption, rows in (
        ("Scores", table[score]),
        ("Losses and what else was measured", table[~score & ~group]),
        ("By group", table[group]),
    ):
        if len(rows):
            short = rows.assign(metric=rows["metric"].str.removeprefix("group_"))
            yield _means(replace(result, table=short), caption)
    for one in changed_items(result):
        if len(one.table):
            caption = f"{one.member}, {one.task}: {len(one.table)} of {one.every} items {one.way}"
            yield _cells(caption, one.table)


def _groups(result: Result) -> Iterator[Table]:
    """Means per member and group of prompts, and how well every two groups are told apart."""
    table = result.table
    over = table["n"].notna() & table["layer"].isna()
    for sign, caption in ((" > ", "First group above the second"), ("", "Groups of prompts")):
        rows = table[over & table["group"].str.contains(" > ", regex=False).eq(bool(sign))]
        if len(rows):
            short = rows.assign(metric=rows["metric"].str.removeprefix("mean:"))
            yield _means(replace(result, table=short), caption)
    if result.has("invisible"):
        rows = result.metric("invisible")[["member", "component", "value"]]
        yield _cells("Changes outside the blocks, |change| / |base|", rows)


def _means(result: Result, caption: str = "Means") -> Table:
    """Means with their intervals: a row per member and whatever else is told apart."""
    table = result.table
    keys = [key for key in KEYS if key in table and table[key].notna().any()]
    shown = table.assign(
        cell=[
            "–" if pd.isna(row.value) else figures.interval(row.value, row.low, row.high)
            for row in table.itertuples(index=False)
        ]
    )
    shown[keys] = shown[keys].astype(object).where(shown[keys].notna(), "")
    wide = shown.groupby([*keys, "metric"], sort=False)["cell"].first().unstack()
    wide = wide.reset_index().fillna("")
    counts = shown.groupby(keys, sort=False)["n"].max() if "n" in table else None
    if counts is not None:
        wide = wide.merge(counts.reset_index(), on=keys)
    return _cells(
        f"{caption}, 95% intervals", wide.rename(columns={"x": X.get(result.analysis, "x")})
    )


def _medians(result: Result) -> Table:
    """Median and quartiles of every metric over its rows, a column per member.

    Where a table has values per matrix beside values per singular vector, only the former, and of
    matrices only: a bias or a norm has no spectrum to compare.
    """
    table = result.table
    caption = "Median [quartiles]"
    if "rank" in table and table["rank"].isna().any():
        table = table[table["rank"].isna()]
        if (table["metric"] == "effective_rank").any():
            table = changed_rows(table)
            caption += " over the matrices that changed"
    spread = table.groupby(["metric", "member"], sort=False)["value"].quantile([0.5, 0.25, 0.75])
    text = spread.unstack().apply(lambda row: figures.interval(*row), axis=1)
    wide = text.unstack().reindex(columns=result.members)
    return _cells(caption, wide.reset_index().fillna(""))


def _cells(caption: str, frame: pd.DataFrame) -> Table:
    """`frame` as text; of a very long one the first rows, and the caption says so."""
    if len(frame) > MOST:
        caption += f" (the first {MOST} of {len(frame)} rows; all are in the saved Result)"
    rows = [
        ["" if pd.isna(v) else f"{v:.4g}" if isinstance(v, float) else str(v) for v in row]
        for row in frame.head(MOST).itertuples(index=False)
    ]
    return Table(caption, [str(name).replace("_", " ") for name in frame.columns], rows)

"""What did fine-tuning do, on one page that can be sent on? Results to one self-contained HTML.

The answer first (`answer`), then a chapter for each Result: its headline, a view to explore, its
tables, the figures as a paper shows them, and where the numbers came from. What the page carries,
and under which policy a browser opens it, is in `packing`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from workbench.reports import answer, packing
from workbench.reports.glossary import glossary
from workbench.reports.tables import Table, as_table, tables
from workbench.results.result import Result
from workbench.results.run_folder import QUESTION

ABOUT = ("kind", "rank", "alpha", "step", "seed", "reference", "fingerprint")
SHORT = 12  # characters of a fingerprint
WORDY = 900  # characters of a headline's clauses from which they are folded away
PREVIEW = 280  # characters of the clauses that a closed chapter shows
BAD = ("warn", "stop")  # statuses of the preflight that the first screen shows


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
    phantoms: Mapping[str, Result | str] | None = None,
) -> Path:
    """Write one HTML page of `results`, with every figure, table and provenance in it; its path.

    results: Results, or folders that `Result.save` wrote, in the order of the chapters; one
    analysis may occur more than once; or Results by name, see `figures.named`. preflight: the table
    of `pair.check()` (item, status, found, remedy), of several models with a column member; its
    warnings stand on the first screen. notes: what limits all numbers, shown with the notes that
    several Results share; a note of one Result stands in its chapter. failures: what could not be
    run, a sentence each. pictures: the folder where `figures.save_all` drew these very Results;
    None draws them. command: what makes all of them again; by default the commands that each Result
    was made by. asked: the first prompts as the tokenizer read them. phantoms: by the same names,
    what the analyses gave of models that learned nothing, or the sentence by which one refused
    them; each stands in its chapter, and their measures on the first screen, which answers
    whether each model learned and forgot as much as the full fine-tune
    (`workbench.findings.equivalence`), where the results hold that.
    The page is one file that opens offline: it loads nothing, and its policy lets no script run but
    its own. Raises WorkbenchError where there are no results or they are of different bases.
    """
    given = list(results.values()) if isinstance(results, Mapping) else list(results)
    read = [one if isinstance(one, Result) else Result.load(one) for one in given]
    names = list(figures.named(results if isinstance(results, Mapping) else read))
    loaded = dict(zip(names, read, strict=True))
    if not loaded:
        raise WorkbenchError("Expected at least one Result to report on, found none.")
    described = [json.dumps(r.provenance.base, sort_keys=True, default=str) for r in read]
    # One base may have been given by several paths.
    bases = {
        r.provenance.base.get("fingerprint", t): t for r, t in zip(read, described, strict=True)
    }
    if len(bases) > 1:
        raise WorkbenchError(
            f"Expected Results of one base checkpoint, found {len(bases)} bases: "
            f"{'; '.join(sorted(bases.values()))}; write one report per base."
        )
    members = figures.everyone(read)
    # What is compared may be recipes of several runs, or curves of several recipes.
    single = figures.everyone([r for r in read if not r.analysis.startswith("compare.")] or read)
    with style.family(members):
        chapters = [
            _checked(name, loaded, pictures, source) | {"phantoms": _nothing(name, phantoms or {})}
            for name, source in zip(names, given, strict=True)
        ]
        looks = packing.looks(members)
    often = Counter(note for result in read for note in _notes(result))
    shared = list(dict.fromkeys([*notes, *(note for note, times in often.items() if times > 1)]))
    base = max((r.provenance.base for r in read), key=len)
    versions = {k: v for r in read for k, v in r.provenance.versions.items()}
    page = render(
        "report.html.jinja",
        title=title,
        question=QUESTION,
        base=base,
        base_line=answer.base_line(base),
        groups=answer.groups(read, _measures(phantoms or {})),
        sets=answer.asked(read),
        versions=[f"{name} {version}" for name, version in versions.items()],
        words=glossary(),
        family=_family(single),
        models=len(single),
        looks=looks,
        warnings=[] if preflight is None else _warnings(preflight),
        preflight=[] if preflight is None else _preflight(preflight),
        notes=shared,
        failures=failures,
        asked=asked,
        commands=[command] if command else list(dict.fromkeys(r.provenance.command for r in read)),
        chapters=chapters,
        short=SHORT,
    )
    with writing(Path(path), PAGE) as fresh:
        fresh.write_text(page, encoding="utf-8")
    return Path(path)


def _measures(phantoms: Mapping[str, Result | str]) -> Result | None:
    """The comparison of the models that learned nothing, where there is one."""
    found = (one for one in phantoms.values() if isinstance(one, Result))
    return next((one for one in found if one.analysis == answer.KEY), None)


def _nothing(name: str, phantoms: Mapping[str, Result | str]) -> tuple[str, list[str]] | None:
    """What one analysis says of models that learned nothing: a lead, and a clause for each."""
    found = phantoms.get(name)
    if found is None:
        return None
    if isinstance(found, str):
        return f"Of models that learned nothing this could not be told: {found}", []
    lead, parts = figures.findings(found)
    told = found.provenance.members.values()  # of a comparison they are recipes of several runs
    count = sum(len(about.get("runs") or [about]) for about in told)
    models = "1 model" if count == 1 else f"{count} models"
    return f"Of {models} that learned nothing: {lead}", list(parts)


PAGE = Mark("a report", says(b'<meta name="generator" content="workbench">'))


def render(template: str, **content: Any) -> str:
    """A page of this folder's templates with the styles, the scripts and the policy around it."""
    scripts = packing.scripts()
    shell = {
        "styles": markupsafe.Markup(packing.styles()),
        "scripts": [markupsafe.Markup(one) for one in scripts],
        "policy": packing.policy(scripts),
    }
    return _templates().get_template(template).render(**shell, **content)


def _seen(value: Any) -> Any:
    """A value of the page without characters that turn its direction or are none in a page."""
    plain = isinstance(value, str) and not isinstance(value, markupsafe.Markup)
    return visible(value) if plain else value


def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names and paths are anyone's text
        undefined=jinja2.StrictUndefined,
        finalize=_seen,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _family(members: Mapping[str, Mapping[str, Any]]) -> Table:
    """Member, and what is known of it; columns that no member fills are left out."""
    known = [key for key in ABOUT if any(about.get(key) is not None for about in members.values())]
    rows = []
    for name, about in members.items():
        cells = ["" if about.get(key) is None else str(about[key]) for key in known]
        if "fingerprint" in known:
            cells[known.index("fingerprint")] = cells[known.index("fingerprint")][:SHORT]
        rows.append([name, *cells])
    return Table("The fine-tuned models", ["model", *known], rows, [*members])


def _preflight(lines: pd.DataFrame) -> list[Table]:
    """What needs a reader, then what is in order (folded away where it is long)."""
    order = [name for name in ("item", "status", "member", "found", "remedy") if name in lines]
    fine = lines["status"] == "ok"
    parts = (("What needs attention", lines[~fine]), ("What is in order", lines[fine]))
    return [as_table(caption, part[order]) for caption, part in parts if len(part)]


def _warnings(lines: pd.DataFrame) -> list[str]:
    """The preflight's warnings, a sentence each, with all the models that one holds of."""
    bad = lines[lines["status"].isin(BAD)]
    return _joined(
        (
            row.get("member"),
            f"{row['item']}: {row['found']}" + (f" ({row['remedy']})" if row["remedy"] else ""),
        )
        for _, row in bad.iterrows()
    )


def _joined(said: Iterable[tuple[str | None, str]]) -> list[str]:
    """Each sentence once, behind the names of all the models that it is about."""
    whom: dict[str, list[str]] = {}
    for name, words in said:
        whom.setdefault(words, []).extend([name] if name else [])
    return [f"{', '.join(names)}: {words}" if names else words for words, names in whom.items()]


def _notes(result: Result) -> list[str]:
    """The notes of a Result; one that several models have names them together."""
    split = [(_whose(note, result.members), note) for note in result.provenance.notes]
    return _joined(
        (name, note.removeprefix(f"{name}: "))
        if name and note.startswith(f"{name}: ")
        else (None, note)
        for name, note in split
    )


def _checked(
    name: str,
    results: Mapping[str, Result],
    pictures: str | Path | None,
    given: Result | str | Path,
) -> dict[str, Any]:
    """`_chapter`. Raises WorkbenchError where a folder holds another table than the analysis it
    names makes; only that analysis knows all that belongs in it."""
    try:
        return _chapter(name, results, pictures)
    except WorkbenchError:
        raise
    except Exception as error:
        if isinstance(given, Result):
            raise
        raise WorkbenchError(
            f"The Result in {given} is not one that {results[name].analysis} makes "
            f"({type(error).__name__}: {error}); run that analysis again."
        ) from error


def _chapter(
    name: str, results: Mapping[str, Result], pictures: str | Path | None
) -> dict[str, Any]:
    """Everything the template shows of one Result."""
    result = results[name]
    provenance = result.provenance
    lead, parts = figures.findings(result)
    about = {
        "analysis": result.analysis,
        "models": ", ".join(result.members),
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
        "name": name,
        "heading": _heading(result, results),
        "lead": lead,
        "parts": [(_whose(part, result.members), part) for part in parts],
        "wordy": sum(map(len, parts)) > WORDY,
        "short": "; ".join(parts)[:PREVIEW],
        "notes": _notes(result),
        "figures": list(_pictures(name, results, lead, pictures)),
        "tables": list(tables(result)),
        "provenance": [(name, "none" if v is None else str(v)) for name, v in about.items()],
        "origin": f"{provenance.device}, {provenance.dtype}{seed}",
        "rows": len(result.table),
        "packed": packing.packed(result),
    }


def _heading(result: Result, results: Mapping[str, Result]) -> str:
    """What a chapter is called; of several of one analysis also whom and what it is about."""
    heading = HEADINGS.get(result.analysis, result.analysis)
    if result.provenance.parameters.get("groups"):
        heading += ", by groups of heads"
    if sum(other.analysis == result.analysis for other in results.values()) > 1:
        ends = list(dict.fromkeys((result.members[0], result.members[-1])))
        asked = result.provenance.parameters.get("prompts")
        task = asked.get("name") if isinstance(asked, Mapping) else None
        heading += f": {' … '.join(ends)}" + (f" on {task}" if task else "")
    return heading


def _whose(part: str, members: Sequence[str]) -> str | None:
    """The model that a clause of a headline begins with."""
    return next((name for name in members if part.startswith((f"{name}:", f"{name} "))), None)


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
        source, width, height = packing.picture(image)
        yield {
            "title": drawing.title,
            "source": source,
            "alt": f"{drawing.title}. {lead}; the numbers are in this chapter's tables.",
            "width": width,
            "height": height,
            "caption": drawing.caption,
            "misleads": drawing.misleads,
        }

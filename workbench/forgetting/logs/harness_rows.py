"""lm-evaluation-harness: the lines of `--log_samples`, of which each is one item under one filter.

Version 0.4.13 was run and looked at; older lines lack `metrics`, `filter` and the hashes, and
the oldest files are one JSON list.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from workbench.errors import WorkbenchError
from workbench.files.reading import parsed
from workbench.forgetting.logs.item import (
    Item,
    Score,
    Task,
    beginning,
    digest,
    ending,
    is_id,
    number_of,
    tags_of,
    told,
)

# What a line holds besides its metrics.
KNOWN = {
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics",
    "doc_hash", "prompt_hash", "target_hash",
}  # fmt: skip
# Metrics that say whether the right one of several choices was taken.
CHOSEN = {"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match"}
Pair = tuple[str, Any]


def rows_of(text: str) -> Iterator[tuple[str, Any]]:
    """("line 3", object) of a file's text; raises WorkbenchError for what is no JSON."""
    try:
        if text.lstrip()[:1] == "[":
            yield from ((f"item {i}", row) for i, row in enumerate(parsed(text), 1))
            return
    except ValueError as error:
        raise WorkbenchError(f"the list is not valid JSON ({error})") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"line {number}", parsed(line)
            except ValueError as error:
                raise WorkbenchError(f"line {number} is not valid JSON ({error})") from error


def tasks_of(rows: Iterator[tuple[str, Any]], name: str, results: Mapping[str, Any]) -> list[Task]:
    """A Task per filter. results: the run's results_*.json, empty where there is none. Raises
    WorkbenchError for a row that is no item, or one that stands twice."""
    by_filter: dict[str, dict[str, Item]] = {}
    for where, row in rows:
        if not isinstance(row, Mapping) or not is_id(row.get("doc_id")):
            raise WorkbenchError(
                f"{where} is not an object with a doc_id, unlike the lines that "
                "lm-eval writes with --log_samples"
            )
        key, chosen = str(row["doc_id"]), str(row.get("filter", "none"))
        items = by_filter.setdefault(chosen, {})
        if key in items:
            raise WorkbenchError(f"{where} repeats the item {key} of the filter {chosen!r}")
        items[key] = _item(row)
    if not by_filter:
        raise WorkbenchError("it holds no item")
    settings = _settings(name, results)
    return [Task(name, items, chosen, settings) for chosen, items in by_filter.items()]


def model_of(results: Mapping[str, Any]) -> str:
    """What a run calls its model: the checkpoint and its adapter, where it says so."""
    config = _mapping(results.get("config"))
    given = config.get("model_args")
    if isinstance(given, str):
        parts = (part.partition("=") for part in given.split(","))
        given = {name.strip(): value.strip() for name, _, value in parts}
    args = _mapping(given)
    names = [args[key] for key in ("pretrained", "peft") if isinstance(args.get(key), str)]
    for other in (results.get("model_name"), config.get("model")):
        if not names and isinstance(other, str):
            names = [other]
    return "+".join(names)


def _settings(name: str, results: Mapping[str, Any]) -> dict[str, str]:
    config = _mapping(results.get("config"))
    found = {
        "lm-eval": results.get("lm_eval_version"),
        "version of the task": _mapping(results.get("versions")).get(name),
        "few-shot examples": _mapping(results.get("n-shot")).get(name),
        "chat template": results.get("chat_template_sha"),
        "system prompt": results.get("system_instruction_sha"),
        "generation": config.get("gen_kwargs"),
        "limit": config.get("limit"),
        "precision": config.get("model_dtype"),
    }
    # What is the default is not always written.
    return {key: told(value) for key, value in found.items() if results}


def _item(row: Mapping[str, Any]) -> Item:
    arguments = _arguments(row.get("arguments"))
    said = row.get("filtered_resps", row.get("resps"))
    log_p = _log_p(said)
    options = _options(arguments) if log_p is not None else []
    doc, target = row.get("doc"), str(row.get("target", ""))
    hashes = {row[key] for key in ("doc_hash",) if isinstance(row.get(key), str)}
    if isinstance(doc, Mapping) and doc:
        hashes.add(digest(doc))
    put = row.get("prompt_hash")
    if not isinstance(put, str):
        put = digest(arguments[0][0]) if arguments else ""
    named = row.get("metrics")
    if not isinstance(named, list):
        named = [key for key in row if key not in KNOWN]
    scores = {}
    for metric in named:
        value = number_of(row.get(metric)) if isinstance(metric, str) else None
        if value is not None:
            chance = 1 / len(options) if len(options) > 1 and metric in CHOSEN else math.nan
            scores[metric] = Score(value, chance, _said(said, log_p, options, metric))
    return Item(
        frozenset(f"{one} {target}" for one in hashes or {put}),
        put,
        scores,
        tags_of(doc),
        ending(arguments[0][0]) if arguments else "",
        beginning(_expected(target, options)),
    )


def _arguments(found: Any) -> list[Pair]:
    """What each request asked: (context, continuation or settings)."""
    requests = found.values() if isinstance(found, Mapping) else found
    made: list[Pair] = []
    for one in requests if isinstance(requests, Sequence | type({}.values())) else ():
        parts = list(one.values()) if isinstance(one, Mapping) else one
        if isinstance(parts, list) and parts and isinstance(parts[0], str):
            made.append((parts[0], parts[1] if len(parts) > 1 else None))
    return made


def _log_p(said: Any) -> list[float] | None:
    """The log-probability of every request, where all of them are [log-probability, greedy]."""
    found = []
    for one in said if isinstance(said, list) else ():
        value = number_of(one[0]) if isinstance(one, list) and len(one) == 2 else None
        if value is None or number_of(one[1]) not in (0.0, 1.0):
            return None
        found.append(value)
    return found or None


def _options(arguments: list[Pair]) -> list[str]:
    """The choices, as they tell them apart; those asked behind no context, which acc_mutual_info
    takes off, come again and are left out."""
    if any(context for context, _ in arguments):
        arguments = [pair for pair in arguments if pair[0]]
    contexts = [context for context, _ in arguments]
    texts = [text if isinstance(text, str) else "" for _, text in arguments]
    return contexts if len(set(texts)) == 1 < len(set(contexts)) else texts


def _said(said: Any, log_p: list[float] | None, options: list[str], metric: str) -> str:
    if log_p is not None:
        if len(options) < 2 or len(log_p) < len(options):
            return ""
        own = log_p[: len(options)]
        if metric == "acc_norm":  # by characters
            own = [p / max(1, len(text.lstrip())) for p, text in zip(own, options, strict=True)]
        return beginning(options[max(range(len(own)), key=own.__getitem__)].strip())
    while isinstance(said, list) and said:
        said = said[0]
    return beginning(said) if isinstance(said, str) else ""


def _expected(target: str, options: list[str]) -> str:
    """The right answer as text: a place among the choices says little."""
    at = int(target) if target.isascii() and target.isdigit() and len(target) < 4 else -1
    return options[at].strip() if 0 <= at < len(options) else target


def _mapping(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}

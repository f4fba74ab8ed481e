"""Samples: which items were lost and gained, according to the logs of an evaluation that was
already run?

No model is run. Both sides' logs, of lm-evaluation-harness (`--log_samples`) or of inspect-ai, are
paired by task and item, and every number is that of `paired`: scores, their paired change, the
items lost and gained, McNemar's exact p. An unchanged average can hide as many lost items as gained
ones.

The items are as they were measured: a sampled answer changes from run to run without any
fine-tuning, which two logs of one model show, and a log records little of how its model was loaded.
Differences between what the two logs record become notes. Of several epochs of a sample each is an
item, and they are resampled together. Chance is 1 / choices; if several choices are right, as in
mc2, guessing gives more than that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError, visible
from workbench.forgetting.logs import Log, joined, read_log
from workbench.forgetting.logs.inspect_samples import SAMPLE
from workbench.forgetting.paired import require_tags, rows
from workbench.results.result import Provenance, Result
from workbench.results.validity import finished

COLUMNS = ["member", "task", "metric", "value", "low", "high", "n", "baseline"]


@analysis(
    "Which items were lost and gained, according to logs of lm-eval or inspect?",
    paper="paired evaluation, arXiv 2510.17776",
    example="--by subject",
    items=True,
)
def samples(
    base: str | Path,
    tuned: str | Path,
    *,
    metric: str | None = None,
    by: str | None = None,
    cluster: str | None = None,
    name: str = "tuned",
    seed: int = 0,
) -> Result:
    """Compare two models item by item, from their logs of one evaluation.

    base, tuned: the log of one side: a samples_TASK_DATE.jsonl of lm-evaluation-harness, the folder
    of its output, a log of inspect-ai (.json or .eval), or a folder of logs. metric: the score of
    an item, for example acc_norm, or a scorer of inspect-ai; by default acc, exact_match or the
    first there is. by: a field of the items, for example subject; the scores are also reported for
    each of its values. cluster: a field whose items are resampled together, for example passage; by
    default the sample, if there are several epochs. name: the name of the tuned model in the table.

    Returns a Result with the rows of `paired.rows` by task; in a log with several filters each is a
    task ("gsm8k, strict-match"). Raises WorkbenchError for a file that is not a log, for logs that
    share no item, for an item that is another question in each, and for a field that no item has.
    """
    if not name or name != visible(name):
        raise WorkbenchError(f"Expected a plain name for the tuned model, found {name!r}.")
    first, last = read_log(base), read_log(tuned)
    found = joined(first, last, metric=metric)
    require_tags(found.paired, by=by, cluster=cluster)
    notes = list(found.notes)
    epochs = cluster is None and any(one.tagged(SAMPLE) is not None for one in found.paired)
    if first.harness == "inspect-ai" and epochs:
        cluster = SAMPLE
        notes.append("several epochs a sample: these are resampled together.")
    same = first.fingerprint == last.fingerprint  # the same log, not the same model run twice
    made: list[dict[str, Any]] = []
    for one in found.paired:
        of = cluster if cluster and one.tagged(cluster) is not None else None
        made += rows(one, by=by, cluster=of, same=same, seed=seed)
    table = pd.DataFrame(made).assign(member=name)
    table = table[[*COLUMNS, *(column for column in table if column not in COLUMNS)]]
    provenance = Provenance(
        base=_about(first),
        members={name: _about(last)},
        parameters={"metric": metric, "by": by, "cluster": cluster, "harness": first.harness},
        seed=seed,
        notes=tuple(notes),
    )
    return finished("forgetting.samples", table, provenance)


def _about(log: Log) -> dict[str, Any]:
    return {
        "reference": log.model or visible(str(log.path)),
        "fingerprint": log.fingerprint,
        "kind": "log",
        "log": visible(str(log.path)),
    }

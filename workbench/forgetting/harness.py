"""lm-evaluation-harness's own tasks, run through both sides of a pair as the workbench loads them.

Its prompts, metrics and filters are those of the installed lm-eval; the models, adapters unmerged,
and the base's tokenizer are ours, so that both sides read the same tokens. What it says of each
item goes through the same reading as its log files. Nothing is fetched: a task's data must be on
this machine. A task is code of whoever wrote it, as its YAML can name functions; none that runs
code which a model wrote is run.

It lies here and not with `tasks`, since what it gives is what two sides did of the same items.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import hashlib
import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench.errors import WorkbenchError, reason, some
from workbench.files.reading import is_count, parsed
from workbench.forgetting.logs import Joined, Log, joined
from workbench.forgetting.logs.harness_rows import rows_of, tasks_of
from workbench.forgetting.side_answers import Side, both
from workbench.loaders import CheckpointPair
from workbench.loaders.quiet import unsaid
from workbench.loaders.staging import offline
from workbench.log import log
from workbench.progress import progress

INSTALL = "pip install 'finetune-workbench[lm-eval]'"
# Where lm-eval draws bars.
BARRED = ("lm_eval.api.task", "lm_eval.api.model", "lm_eval.models.huggingface")


def measured(
    pair: CheckpointPair,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    fewshot: int | None = None,
    batch_size: int = 32,
    device: str = "cpu",
    dtype: str = "float32",
    include: str | Path | None = None,
    metric: str | None = None,
) -> Joined:
    """Both sides' scores of every item of lm-eval's tasks, paired, and notes.

    tasks: names of tasks or groups, as lm-eval lists them. limit: the first so many items of each
    task; None takes all. fewshot: examples in the prompt, where the task does not fix them at 0;
    None leaves it to the task. include: a folder of YAML tasks of one's own. metric: as in
    `samples`. The base is read once for all members of a family. Raises WorkbenchError where
    lm-eval is not installed, for unknown tasks, and for tasks whose data is not on this machine,
    before a model is loaded.
    """
    _require_lm_eval()
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if not names:
        raise WorkbenchError("Expected tasks of lm-eval to run, found none; give their names.")
    for name, value, least in (("limit", limit, 1), ("fewshot", fewshot, 0)):
        if value is not None and not is_count(value, least):
            raise WorkbenchError(f"Expected {name} to be a whole number, found {value!r}.")
    with _alone():
        manager, content = _loaded(names, include)
        asked = {"limit": limit, "num_fewshot": fewshot}
        logs = [
            side.once(
                ("lm-eval", tuple(names), limit, fewshot, content),
                lambda side=side, name=name: _run(side, name, names, manager, asked),
            )
            for side, name in zip(both(pair, batch_size, device, dtype), ("base", "tuned"),
                                  strict=True)
        ]  # fmt: skip
    return joined(*logs, metric=metric)


def _require_lm_eval() -> None:
    try:
        import lm_eval.models.huggingface  # noqa: F401
    except ImportError as error:
        raise WorkbenchError(
            f"lm-eval's tasks need lm-evaluation-harness ({reason(error)}); {INSTALL}."
        ) from error


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """lm-eval says nothing but through our log, reaches nothing but this machine, and leaves the
    seeds of the process as they were."""
    from importlib import import_module

    import datasets
    import evaluate

    loud = log.isEnabledFor(logging.DEBUG)
    with contextlib.ExitStack() as stack:
        for name in ("lm_eval", "lm-eval", "datasets", "evaluate"):
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logger.level if loud else logging.CRITICAL)
        for config in (datasets.config, evaluate.config):
            for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
                if hasattr(config, name):  # read from the environment once, at their import
                    stack.callback(setattr, config, name, getattr(config, name))
                    setattr(config, name, True)
        evaluator: Any = import_module("lm_eval.evaluator")  # which asks git where we are
        stack.callback(setattr, evaluator, "get_git_commit_hash", evaluator.get_git_commit_hash)
        evaluator.get_git_commit_hash = lambda: None
        for name in BARRED:
            module = import_module(name)
            if hasattr(module, "tqdm"):
                stack.callback(setattr, module, "tqdm", module.tqdm)
                setattr(module, "tqdm", progress)  # noqa: B010 - of a module that is not known here
        if datasets.are_progress_bars_disabled() is False:
            datasets.disable_progress_bars()
            stack.callback(datasets.enable_progress_bars)
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.enter_context(torch.random.fork_rng())
        stack.enter_context(offline())
        stack.enter_context(unsaid())
        yield


def _loaded(names: Sequence[str], include: str | Path | None) -> tuple[Any, str]:
    """lm-eval's own list of tasks, and a digest of what the tasks that are asked for ask."""
    from lm_eval.tasks import get_task_dict

    manager = _manager(names, include)
    for name in names:
        if name not in manager.all_tasks:
            close = difflib.get_close_matches(name, manager.all_tasks, 3)
            hint = f"; close to it are {', '.join(close)}" if close else ""
            raise WorkbenchError(
                f"Expected a task of lm-eval, found {name!r}{hint}; `lm_eval ls tasks` lists them, "
                "and include=FOLDER adds your own."
            )
    try:
        found = list(_leaves(get_task_dict(list(names), manager)))
    except Exception as error:  # of datasets, of the hub, of a YAML and of the code that it names
        raise WorkbenchError(
            f"The tasks {some(list(names))} of lm-eval cannot be loaded without the "
            f"network ({reason(error)}); run them once with lm_eval while there is a "
            "network, which stores their data in the cache of datasets, or give tasks "
            "on local files by include=FOLDER."
        ) from error
    unsafe = [name for name, task in found if getattr(task, "UNSAFE_CODE", False)]
    if unsafe:
        raise WorkbenchError(
            f"The task {unsafe[0]} runs code that a model wrote, which is not done here; measure "
            "both models with lm_eval --log_samples in a sandbox, and read the logs with "
            "`workbench forget samples`."
        )
    told = [[name, _content(task)] for name, task in found]
    return manager, hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest()


def _manager(names: Sequence[str], include: str | Path | None) -> Any:
    """What finds tasks by name; lm-eval's own, whose listing takes seconds, where one is asked
    for."""
    from lm_eval.tasks import TaskManager

    if include is None:
        return TaskManager()
    if not Path(include).is_dir():
        raise WorkbenchError(
            f"Expected a folder of YAML tasks at {include}, found none; give include=FOLDER."
        )
    own = TaskManager(include_path=str(include), include_defaults=False)
    # A group of one's own may hold tasks of lm-eval.
    alone = set(names) <= set(own.all_tasks) - set(own.all_groups)
    return own if alone else TaskManager(include_path=str(include))


def _leaves(found: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """(name, task) of a mapping of tasks, and of groups of them."""
    for name, one in found.items():
        if isinstance(one, Mapping):
            yield from _leaves(one)
        else:
            yield str(name), one


def _content(task: Any) -> list[Any]:
    """What tells a task's questions and its data from others."""
    data = getattr(task, "dataset", None)
    splits = data.values() if isinstance(data, Mapping) else [data]
    return [task.dump_config(), *(getattr(one, "_fingerprint", None) for one in splits)]


def _run(
    side: Side, name: str, names: Sequence[str], manager: Any, asked: Mapping[str, Any]
) -> Log:
    """What one side says to every item."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.utils import handle_non_serializable

    # A copy, which lm-eval may give a padding token. The start token is what the tokenizer itself
    # puts in front, here as in every other analysis; earlier versions of lm-eval leave it out.
    words = copy.deepcopy(side.words)
    model = HFLM(
        pretrained=side.model, tokenizer=words, batch_size=side.batch_size, add_bos_token=True
    )
    try:
        found: Any = lm_eval.simple_evaluate(
            model=model, tasks=list(names), task_manager=manager, log_samples=True,
            bootstrap_iters=0, batch_size=side.batch_size, **asked,
        )  # fmt: skip
    except WorkbenchError:
        raise
    except torch.OutOfMemoryError as error:
        raise WorkbenchError(
            f"The {name} model ran out of memory on lm-eval's tasks with {side.batch_size} texts "
            "at once; give a smaller batch_size."
        ) from error
    except Exception as error:  # of jinja, of a metric, of the code that a task names
        raise WorkbenchError(
            f"lm-eval cannot run {some(list(names))} ({reason(error)}); check whether "
            "lm_eval itself can run them, with --log_samples."
        ) from error
    told = {key: found.get(key) for key in ("versions", "n-shot", "config", "lm_eval_version")}
    results = parsed(json.dumps(told, default=handle_non_serializable))
    made = []
    for task, samples in found["samples"].items():
        lines = "\n".join(json.dumps(one, default=handle_non_serializable) for one in samples)
        made += tasks_of(rows_of(lines), task, results)
    return Log(Path(side.checkpoint.name), "lm-eval", "", name, tuple(made))

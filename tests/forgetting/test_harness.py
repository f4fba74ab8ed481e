"""lm-eval's own tasks through our models: item by item what lm-eval says of the same checkpoints,
which it loads by itself, and what our own scorers say of the same items."""

from __future__ import annotations

import json
import logging
import random
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.demo import FAMILY
from workbench.forgetting.harness import measured
from workbench.results.result import Result
from workbench.tasks import Choices, Continuation, Generation, Prompt, PromptSet, answers, facts

pytest.importorskip("lm_eval")
MEMBERS = {"full": {}, "lora-r1": {}}
N = 40
NAMES = ["facts_choice", "facts_likely", "facts_written", "facts_shots"]
SHARED = """
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
TASKS = {
    "facts_choice": """
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: label
num_fewshot: 0
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_mutual_info}]
""",
    "facts_likely": """
output_type: loglikelihood
doc_to_target: "{{' ' + choices[label]}}"
num_fewshot: 0
metric_list: [{metric: acc}, {metric: perplexity}]
""",
    "facts_written": """
output_type: generate_until
doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: [" ."], max_gen_toks: 5, do_sample: false}
num_fewshot: 0
metric_list: [{metric: exact_match}]
filter_list:
  - name: first
    filter: [{function: regex, regex_pattern: '([A-Za-z]+)'}, {function: take_first}]
  - name: last
    filter: [{function: regex, regex_pattern: '([A-Za-z]+)', group_select: -1},
             {function: take_first}]
""",
    "facts_shots": """
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: label
fewshot_split: test
metric_list: [{metric: acc}]
""",
}


def questions() -> list[Prompt]:
    """Facts of the small world, right answers and foils. One foil of each goes on to the end of
    the sentence, which is likely behind any word: by characters it is worth more."""
    made = []
    for i, prompt in enumerate(facts(N, seed=7, split="test")):
        foils = tuple(
            f"{foil} . Now the" if j == i % 3 else foil for j, foil in enumerate(prompt.foils)
        )
        made.append(Prompt(str(i), prompt.prompt, prompt.target, foils))
    return made


@pytest.fixture(scope="module")
def include(tmp_path_factory) -> Path:
    """A folder of tasks in YAML over one file."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = []
    for i, prompt in enumerate(questions()):
        texts = [text[1:] for text in (prompt.target, *prompt.foils)]
        random.Random(i).shuffle(texts)
        rows.append({"question": prompt.prompt, "choices": texts, "even": str(i % 2),
                     "label": texts.index(prompt.target[1:])})  # fmt: skip
    (folder / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = SHARED.format(data=folder / "facts.jsonl")
    for name, own in TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}{shared}{own.lstrip()}")
    return folder


@pytest.fixture(scope="module")
def logged(include, tmp_path_factory) -> dict[str, Path]:
    """What lm-eval itself writes of the base and the members with --log_samples."""
    import lm_eval
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    made = {}
    for name in ("base", *MEMBERS):
        args = {"pretrained": str(FAMILY / "base"), "dtype": "float32"}
        if name == "full":
            args["pretrained"] = str(FAMILY / name)
        elif name != "base":
            args["peft"] = str(FAMILY / name)
        made[name] = tmp_path_factory.mktemp(name)
        tracker = EvaluationTracker(output_path=str(made[name]))
        found: Any = lm_eval.simple_evaluate(
            model="hf", model_args=args, tasks=NAMES, batch_size=8, device="cpu",
            evaluation_tracker=tracker,
            task_manager=TaskManager(include_path=str(include), include_defaults=False),
            num_fewshot=2, bootstrap_iters=0,
        )  # fmt: skip
        samples = found.pop("samples")
        tracker.save_results_aggregated(results=found, samples=samples)
        for task, own in samples.items():
            tracker.save_results_samples(task_name=task, samples=own)
    return made


@cache
def pair(name: str) -> wb.CheckpointPair:
    return wb.load_pair(FAMILY / "base", FAMILY / name, name)


def items(found: Result, task: str) -> Any:
    rows = found.metric("item")
    return rows[rows["task"] == task].set_index("prompt")


def lines(folder: Path, task: str) -> list[dict]:
    (file,) = folder.glob(f"*/samples_{task}_*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("name", MEMBERS)
def test_every_item_is_scored_as_lm_eval_scores_it(name: str, include, logged):
    """Our loading, adapters unmerged, against lm-eval's own; from memory and from its files."""
    run = measured(pair(name), NAMES, include=include, batch_size=8, fewshot=2)
    read = wb.forgetting.samples(logged["base"], logged[name])
    tasks = ["facts_choice", "facts_likely", "facts_written, first", "facts_written, last",
             "facts_shots"]  # fmt: skip
    assert sorted(one.task for one in run.paired) == sorted(tasks)
    for one in run.paired:
        own = items(read, one.task)
        assert list(own.index) == list(one.ids) == [str(i) for i in range(N)]
        np.testing.assert_array_equal(own["baseline"], one.before)
        np.testing.assert_array_equal(own["value"], one.after)
        for column in ("asked", "expected", "base_said", "said"):
            assert tuple(own[column]) == getattr(one, column)
        assert [tags["even"] for tags in one.tags] == [str(i % 2) for i in range(N)]
        chosen = one.task in ("facts_choice", "facts_shots")
        np.testing.assert_array_equal(one.chance, np.full(N, 0.25 if chosen else np.nan))
        metric = "exact_match" if "written" in one.task else "acc"
        for side, mean in (("base", one.before), (name, one.after)):
            (file,) = logged[side].glob("*/results_*.json")
            task, _, filter = one.task.partition(", ")
            told = json.loads(file.read_text())["results"][task]
            assert told[f"{metric},{filter or 'none'}"] == pytest.approx(mean.mean(), abs=1e-12)
    assert 0 < sum(one.after.sum() for one in run.paired) < N * len(run.paired)
    assert ["few-shot" in note for note in run.notes] == [False] * len(run.notes)
    shots = next(one for one in run.paired if one.task == "facts_shots")
    assert all(text.count("\n\n") == 2 for text in shots.asked)


@pytest.mark.parametrize("name", ["base", *MEMBERS])
def test_our_own_scorers_agree_with_lm_eval(name: str, logged):
    """The choices' log-probabilities to 1e-4, right or wrong exactly; of acc_norm lm-eval counts
    characters, of which ours are bytes: alike here."""
    found = pair(next(iter(MEMBERS))).base if name == "base" else pair(name).tuned
    model, words = found.load(dtype=torch.float32), wb.Checkpoint.parse(FAMILY / "base").tokenizer()
    asked = questions()
    theirs = lines(logged[name], "facts_choice")
    for by, metric in (("sum", "acc"), ("byte", "acc_norm"), ("unconditional", "acc_mutual_info")):
        ours = answers(model, words, PromptSet("q", tuple(asked), scorer=Choices(by)), batch_size=7)
        assert list(ours["correct"]) == [row[metric] for row in theirs]
    if name == "lora-r1":  # the three are not one
        right = {m: [row[m] for row in theirs] for m in ("acc", "acc_norm", "acc_mutual_info")}
        assert 0 < sum(right["acc"]) < N
        assert right["acc"] != right["acc_norm"] != right["acc_mutual_info"] != right["acc"]
    ours = answers(model, words, PromptSet("q", tuple(asked), scorer=Choices()), batch_size=3)
    for row, prompt, (_, own) in zip(theirs, asked, ours.iterrows(), strict=True):
        requests = zip(row["arguments"].values(), row["filtered_resps"], strict=True)
        log_p = {args["arg_1"]: float(said[0]) for args, said in requests if args["arg_0"]}
        assert set(log_p) == {prompt.target, *prompt.foils}
        best = max(log_p[foil] for foil in prompt.foils)
        assert own["log_probability"] == pytest.approx(log_p[prompt.target], abs=1e-4)
        assert own["margin"] == pytest.approx(log_p[prompt.target] - best, abs=1e-4)
        assert own["answer"] == max(log_p, key=log_p.__getitem__)
    likely = answers(model, words, PromptSet("q", tuple(asked), scorer=Continuation()))
    assert list(likely["correct"]) == [row["acc"] for row in lines(logged[name], "facts_likely")]
    written = Generation(length=5, extract="[A-Za-z]+", pick=0, alike=())
    ours = answers(model, words, PromptSet("q", tuple(asked), scorer=written), batch_size=6)
    theirs = [row for row in lines(logged[name], "facts_written") if row["filter"] == "first"]
    assert list(ours["correct"]) == [row["exact_match"] for row in theirs]


def test_a_limit_takes_the_first_items_and_nothing_of_the_process_changes(
    include, capfd, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # where git, which lm-eval asks, would complain
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    wanted = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    logger = logging.getLogger("lm_eval")
    level = logger.level
    asked = {"include": include.absolute(), "limit": 5, "metric": "acc_norm"}
    found = measured(pair("full"), "facts_choice", **asked)
    assert (torch.rand(1), random.random(), np.random.rand()) == wanted
    assert logger.level == level
    (one,) = found.paired
    assert one.ids == tuple("01234")
    assert found.notes == ()  # a metric that is asked for is not told
    assert capfd.readouterr() == ("", "")


def test_a_model_against_itself_changes_nothing(include):
    same = wb.load_pair(FAMILY / "base", FAMILY / "base")
    found = measured(same, ["facts_choice", "facts_written"], include=include, limit=8)
    for one in found.paired:
        np.testing.assert_array_equal(one.before, one.after)
        assert one.base_said == one.said


def test_what_cannot_be_run_ends_in_one_sentence(include, tmp_path, monkeypatch):
    with pytest.raises(wb.WorkbenchError, match=r"found 'facts_choise'; close to it are facts_c"):
        measured(pair("full"), ["facts_choise"], include=include)
    with pytest.raises(wb.WorkbenchError, match=r"hellaswag of lm-eval cannot be loaded without"):
        measured(pair("full"), ["hellaswag"])
    with pytest.raises(wb.WorkbenchError, match="Expected a folder of YAML tasks at"):
        measured(pair("full"), ["hellaswag"], include=tmp_path / "no")
    with pytest.raises(wb.WorkbenchError, match="found none; give their names"):
        measured(pair("full"), [])
    with pytest.raises(wb.WorkbenchError, match="Expected limit to be a whole number, found 0"):
        measured(pair("full"), ["facts_choice"], include=include, limit=0)
    broken = TASKS["facts_choice"].replace("{{choices}}", "{{nothing.here}}")
    shared = SHARED.format(data=include / "facts.jsonl")
    (tmp_path / "broken.yaml").write_text(f"task: broken{shared}{broken.lstrip()}")
    with pytest.raises(wb.WorkbenchError, match=r"broken .*\('nothing' is undefined\)"):
        measured(pair("full"), ["broken"], include=tmp_path)
    (tmp_path / "unsafe.yaml").write_text(
        f"task: unsafe\nunsafe_code: true{shared}{TASKS['facts_likely'].lstrip()}"
    )
    with pytest.raises(wb.WorkbenchError, match="unsafe runs code that a model wrote"):
        measured(pair("full"), ["unsafe"], include=tmp_path)
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(wb.WorkbenchError, match=r"pip install 'finetune-workbench\[lm-eval\]'"):
        measured(pair("full"), ["facts_choice"], include=include)


def test_the_hub_stays_out_of_reach_where_the_environment_allows_it():
    code = """
import os, socket, sys
os.environ.pop("HF_HUB_OFFLINE", None)
def refused(*where):
    raise AssertionError(f"connected to {where}")
socket.create_connection = socket.socket.connect = socket.getaddrinfo = refused
import workbench as wb
from workbench.demo import FAMILY
from workbench.forgetting.harness import measured
pair = wb.load_pair(FAMILY / "base", FAMILY / "full")
try:
    measured(pair, ["hellaswag"])
except wb.WorkbenchError as error:
    print(error)
import datasets
from huggingface_hub import constants
print(datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, after = done.stdout.splitlines()
    assert "cannot be loaded without the network" in said
    assert "connected to" not in said
    assert after == "False False"

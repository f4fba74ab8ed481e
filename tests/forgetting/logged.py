"""Logs of evaluations as lm-evaluation-harness 0.4.13 and inspect-ai 0.3.285 write them, cut to
what is read and to what stands beside it."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DATE = "2026-01-02T03-04-05.678901"
ZSTANDARD = 93
CHOICES = ("cat", "horse", "parrot", "dog")


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def choice_row(number: int, right: bool, *, taken: int | None = None, **more: Any) -> dict:
    """A line of a multiple-choice task of four; the right one is the number's remainder by 4, and
    where it is not taken, the next one is. The log-probabilities are -1 and -2."""
    target = number % 4
    taken = taken if taken is not None else target if right else (target + 1) % 4
    question = f"Which animal is number {number} ?"
    doc = {"question": question, "choices": list(CHOICES), "answer": target,
           "subject": f"s{number % 2}", "long": "x" * 300}  # fmt: skip
    log_p = [["-1.0" if i == taken else "-2.0", str(i == taken)] for i in range(4)]
    return {
        "doc_id": number,
        "doc": doc,
        "target": str(target),
        "arguments": {
            f"gen_args_{i}": {"arg_0": question, "arg_1": f" {text}"}
            for i, text in enumerate(CHOICES)
        },
        "resps": [[pair] for pair in log_p],
        "filtered_resps": log_p,
        "filter": "none",
        "metrics": ["acc", "acc_norm"],
        "doc_hash": sha(json.dumps(doc)),
        "prompt_hash": sha(question),
        "target_hash": sha(str(target)),
        "acc": float(taken == target),
        "acc_norm": float(not right),
    } | more


def written_row(number: int, right: bool, chosen: str, said: str, **more: Any) -> dict:
    """A line of a task in which text is written, under one filter."""
    question = f"Question: {number} + 1 = ? Answer:"
    doc = {"question": question, "answer": str(number + 1)}
    return {
        "doc_id": number,
        "doc": doc,
        "target": str(number + 1),
        "arguments": {"gen_args_0": {"arg_0": question, "arg_1": {"until": ["\n"]}}},
        "resps": [[f"It is {said}."]],
        "filtered_resps": [said],
        "filter": chosen,
        "metrics": ["exact_match"],
        "doc_hash": sha(json.dumps(doc)),
        "prompt_hash": sha(question),
        "target_hash": sha(str(number + 1)),
        "exact_match": float(right),
    } | more


def results(task: str, **more: Any) -> dict:
    """The results_*.json of a run."""
    return {
        "results": {task: {"alias": task, "acc,none": 0.5}},
        "versions": {task: 1.0},
        "n-shot": {task: 0},
        "config": {
            "model": "hf", "model_args": {"pretrained": "org/base", "dtype": "float32"},
            "model_dtype": "torch.float32", "limit": None, "gen_kwargs": {},
        },
        "lm_eval_version": "0.4.13",
        "chat_template_sha": None,
        "model_name": "org/base",
    } | more  # fmt: skip


def lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def output(folder: Path, tasks: Mapping[str, Sequence[Mapping[str, Any]]], **more: Any) -> Path:
    """The folder of a run's output, with the model's own folder in it."""
    own = folder / "org__base"
    for task, rows in tasks.items():
        lines(own / f"samples_{task}_{DATE}.jsonl", rows)
        (own / f"results_{DATE}.json").write_text(json.dumps(results(task, **more)))
    return folder


def sample(number: int, value: Any, *, epoch: int = 1, **more: Any) -> dict:
    """One sample of an inspect log, under two scorers."""
    asked = f"The capital of land {number} ?"
    answers = {"C": "Rome", "I": "Oslo"}
    said = answers.get(value, "")
    return {
        "id": f"q{number}",
        "epoch": epoch,
        "input": asked,
        "target": "Rome",
        "messages": [
            {"id": "xyz", "content": asked, "source": "input", "role": "user"},
            {"id": f"{number}{value}", "content": said, "source": "generate", "role": "assistant"},
        ],
        "output": {"model": "mockllm/model", "completion": f"It is {said}"},
        "scores": {
            "match": {"value": value, "answer": said, "explanation": said, "history": []},
            "judge": {"value": {"style": 0.5, "length": 30}, "answer": None},
        },
        "metadata": {"region": f"r{number % 2}", "n": number},
        "events": [],
        "attachments": {},
    } | more


def evaluation(samples: Sequence[Mapping[str, Any]], **more: Any) -> dict:
    """An inspect log."""
    return {
        "version": 2,
        "status": "success",
        "eval": {
            "task": "capitals", "task_version": 0, "task_args": {}, "model": "mockllm/model",
            "model_args": {}, "model_generate_config": {}, "config": {"epochs": 1},
            "packages": {"inspect_ai": "0.3.285"},
        } | more,
        "plan": {"name": "plan", "steps": []},
        "results": {"total_samples": len(samples)},
        "samples": list(samples),
        "reductions": [],
    }  # fmt: skip


def archive(log: Mapping[str, Any], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A .eval. method: 93 is zstandard, which zipfile cannot pack: it is packed here, stored, and
    the stored file's method is written over."""
    about = dict(log)
    parts = {f"samples/{one['id']}_epoch_1.json": one for one in about.pop("samples")}
    packed = {
        name: json.dumps(one).encode() for name, one in {**parts, "header.json": about}.items()
    }
    if method == ZSTANDARD:
        import zstandard

        packed = {name: zstandard.compress(raw) for name, raw in packed.items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(
        buffer, "w", zipfile.ZIP_STORED if method == ZSTANDARD else method
    ) as made:
        for name, raw in packed.items():
            made.writestr(name, raw)
    raw = bytearray(buffer.getvalue())
    for mark, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)) if method == ZSTANDARD else ():
        at = raw.find(mark)
        while at >= 0:
            raw[at + place] = ZSTANDARD
            at = raw.find(mark, at + 4)
    return bytes(raw)


def written(path: Path, log: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(log))
    return path

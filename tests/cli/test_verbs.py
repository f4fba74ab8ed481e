"""A verb for every public function, with the signature that Python reads; earlier names work."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer

import workbench as wb
from tests.terminal import workbench
from workbench.cli import app
from workbench.cli.signatures import Signature, signatures
from workbench.cli.verbs import FAMILIES, _today, verb_of
from workbench.study.catalogue import METHODS

EVERY = [one for family in FAMILIES.values() for one in signatures(family)]
# What only Python can say: another pair, and groups of heads that are objects.
UNSAID = {"origin", "paths"}


def options(*words: str) -> set[str]:
    """Every option of a command, however it is spelled."""
    command = typer.main.get_command(app)
    for word in words:
        command = command.get_command(None, word)  # type: ignore[attr-defined]
    return {name for one in command.params for name in (*one.opts, *one.secondary_opts)}


def test_every_method_is_read():
    assert {one.module for one in EVERY} == {method.key for method in METHODS}
    assert {one.question for one in EVERY} == {method.question for method in METHODS}


@pytest.mark.parametrize("one", EVERY, ids=lambda one: one.module)
def test_the_source_is_read_as_python_reads_it(one: Signature):
    function = getattr(getattr(wb, one.family), one.name)
    known = inspect.signature(function).parameters
    assert [p.name for p in one.parameters] == list(known)
    for parameter in one.parameters:
        default = known[parameter.name].default
        assert parameter.needed == (default is inspect.Parameter.empty), parameter
        try:
            assert ast.literal_eval(parameter.default or "None") in (default, None), parameter
        except ValueError:  # an expression, of which the help says nothing
            assert not isinstance(default, str | int | float | None)


@pytest.mark.parametrize("one", EVERY, ids=lambda one: one.module)
def test_every_parameter_is_an_option(one: Signature):
    group = next(name for name, family in FAMILIES.items() if family == one.family)
    there = options(group, verb_of(one))
    if one.name == "compose":  # by hand: a skill is a member, its prompts and its graft
        return
    for parameter in one.parameters[1:]:
        stands = {"task": "--prompts", "pairs": "--kind"}.get(parameter.name)
        typed = {f"--{parameter.name.strip('_').replace('_', '-')}", parameter.name, stands}
        assert parameter.name in UNSAID or typed & there, parameter


def typed(one: Signature) -> tuple[str, str]:
    """The group and the verb of a function."""
    return next(n for n, family in FAMILIES.items() if family == one.family), verb_of(one)


SMALLER = [one for one in EVERY if one.record.keys() & {"quick", "few"}]


@pytest.mark.parametrize("one", SMALLER, ids=lambda one: one.module)
def test_what_the_command_line_chooses_is_less(one: Signature):
    """Fewer values of a grid, smaller numbers, fewer prompts; `--full` is there to undo it."""
    known = inspect.signature(getattr(getattr(wb, one.family), one.name)).parameters
    for name, value in one.record.get("quick", {}).items():
        default = known[name].default
        if isinstance(value, tuple):
            assert len(value) < len(default), name
            assert set(value) <= set(default), name
        else:  # of a number None is no bound
            assert default is None or (type(value) is type(default) and value < default), name
    sets = {p.name for p in one.parameters if re.search("PromptSet|Counterfactuals", p.kind)}
    few = one.record.get("few", {})
    assert few.keys() <= sets
    assert all(isinstance(most, int) and 8 <= most <= 128 for most in few.values())
    assert "--full" in options(*typed(one))
    said = inspect.getdoc(getattr(getattr(wb, one.family), one.name)) or ""
    assert re.search(r"The command line (takes|writes|draws) .*with\s--full", said, re.DOTALL)


def test_full_is_nowhere_else():
    others = [one for one in EVERY if one not in SMALLER and one.name != "compose"]
    assert others
    assert not any("--full" in options(*typed(one)) for one in others)


def asked_for(monkeypatch, family: str, name: str, *more: str) -> dict[str, Any]:
    """What a verb hands to its function, which is not run."""
    given: dict[str, Any] = {}

    def function(**arguments: Any) -> None:
        given.update(arguments)
        raise wb.WorkbenchError("not run")

    monkeypatch.setattr(getattr(wb, family), name, function)
    monkeypatch.setattr(wb, "load_pair", lambda base, tuned: (base, tuned))
    (one,) = (one for one in signatures(family) if one.name == name)
    done = workbench(*typed(one), "B", "T", *more)
    assert "not run" in done.stderr, done.stderr
    return given | {"said": done.stderr}


def test_full_brings_the_functions_own_defaults_back(monkeypatch):
    ask = partial(asked_for, monkeypatch, "behaviour", "generate")
    assert {n: v for n, v in ask().items() if n in ("n", "length", "rounds", "alpha")} == {
        "n": 24, "length": 32, "rounds": 2, "alpha": 0.1,
    }  # fmt: skip
    assert ask("--full").keys().isdisjoint({"n", "length", "rounds"})
    # What is typed holds in both.
    for more in ((), ("--full",)):
        assert ask("--n", "5", *more)["n"] == 5
    assert ask("--n", "5", "--full").keys().isdisjoint({"length", "rounds"})


DRAWN = [one for one in EVERY if any(p.kind == "Counterfactuals" for p in one.parameters)]


@pytest.mark.parametrize("one", DRAWN, ids=lambda one: one.module)
def test_as_many_pairs_are_drawn_as_the_help_says(one: Signature, monkeypatch):
    told = re.search(
        r"--n .*?\[default:\s+\((\d+)\)\]", workbench(*typed(one), "--help").stdout, re.S
    )
    assert told is not None
    ask = partial(asked_for, monkeypatch, one.family, one.name)
    assert len(ask()["pairs"]) == int(told[1])
    assert len(ask("--full")["pairs"]) == 200
    assert len(ask("--n", "9")["pairs"]) == 9


def test_a_shared_option_can_be_smaller_too(monkeypatch, tmp_path: Path):
    file = wb.tasks.ledger(20, seed=1).save(tmp_path / "ledger.jsonl")
    given = ("--prompts", str(file), "--lessons", str(file))
    ask = partial(asked_for, monkeypatch, "forgetting", "revive", *given)
    assert (ask()["batch_size"], ask("--batch-size", "4")["batch_size"]) == (8, 4)
    assert "batch_size" not in ask("--full")


def test_of_a_long_file_evenly_spaced_prompts_are_taken(monkeypatch, tmp_path: Path):
    long, short = (
        wb.tasks.ledger(n, seed=n, split="test").save(tmp_path / f"{n}.jsonl") for n in (80, 32)
    )
    whole = [prompt.id for prompt in wb.tasks.PromptSet.load(long)]
    ask = partial(asked_for, monkeypatch, "forgetting", "interpolate")
    few = ask("--prompts", str(long), "--others", str(long), "--others", str(short))
    assert [p.id for p in few["prompts"]] == [whole[int(2.5 * i)] for i in range(32)]
    assert [len(one) for one in few["others"]] == [32, 32]
    assert few["alphas"] == (0.0, 0.3, 0.5, 0.7, 1.0)
    assert few["said"].count("32 of 80 prompts, evenly spaced; --full uses all.") == 2
    full = ask("--prompts", str(long), "--others", str(short), "--full")
    assert [p.id for p in full["prompts"]] == whole
    assert "alphas" not in full
    assert "evenly" not in full["said"]


def test_pairs_of_a_mask_are_drawn_as_many_as_are_asked_for(monkeypatch):
    ask = partial(asked_for, monkeypatch, "patching", "mask", "--count", "4")
    assert [len(ask(*more)["pairs"]) for more in ((), ("--full",), ("--n", "12"))] == [24, 200, 12]


def test_words_of_a_parameter_are_the_docstrings():
    (found,) = (one for one in signatures("spectral") if one.name == "intruders")
    said = {parameter.name: parameter.help for parameter in found.parameters}
    assert said["k"] == "The number of singular vectors per matrix (paper: 10)."
    assert said["eps"] == (
        "A vector is an intruder if its largest |cosine| with a base vector is below this "
        "(paper: 0.5)."
    )
    (joint,) = (one for one in signatures("spectral") if one.name == "similarity")
    # "As in `intruders`." is what it says there.
    assert {p.name: p.help for p in joint.parameters}["side"] == said["side"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("spectral spectrum", "spectral delta-spectrum"),
        ("spectral scale", "spectral scale-intruders"),
        ("patch cmap", "patch cross-model"),
        ("patching lens", "patch lens"),
        ("forgetting probe", "forget probe"),
    ],
)
def test_earlier_verbs_are_those_of_today(old: str, new: str):
    assert options(*old.split()) == options(*new.split())


@pytest.mark.parametrize(
    ("verb", "typed", "today"),
    [
        ("skills restore", "--other", ["--others"]),
        ("forget retention", "--other=facts.jsonl", ["--prompts=facts.jsonl"]),
        ("forget retention", "--text", ["--texts"]),
        ("forget revive", "--rate", ["--lr"]),
        ("skills localize", "--rate", ["--rate"]),
        ("forget conjugate", "--conjugate", ["--conjugates"]),
        ("forget sequential", "--task", ["--tasks"]),
        ("forget sequential", "--prompts", ["--tasks"]),
        ("forget prune", "--task", ["--task"]),
        ("spectral scale-intruders", "--task", ["--prompts"]),
        ("patch circuit", "--theirs", ["--circuits"]),
        ("skills calibration", "--graft", ["--grafts"]),
        ("patch activation", "--noising", ["--direction", "noising"]),
        ("patch restore", "--own-answer", ["--answer", "base"]),
        ("behaviour faithfulness", "--mistakes", ["--mistake", "off_by_one"]),
        ("tuco contribution", "--streamed", ["--base", "disk"]),
        ("patch lens", "--streamed", ["--streamed"]),
    ],
)
def test_earlier_options_are_those_of_today(verb: str, typed: str, today: list[str]):
    assert _today(typed, options(*verb.split())) == today


@pytest.mark.parametrize(("more", "verb"), [((), "contribution"), (("--alphas", "0"), "scaling")])
def test_tuco_alone_is_one_of_its_verbs(more: tuple[str, ...], verb: str):
    found = workbench("tuco", "B", "T", "--nothing", *more)
    assert found.returncode == 2
    assert f"workbench tuco {verb} [OPTIONS]" in found.stderr


def test_helps_are_of_no_torch():
    code = (
        "import sys; sys.argv[1:] = ['patch', 'cross-model', '--help']\n"
        "from workbench.cli import main\n"
        "try: main()\nfinally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("False\n")
    assert "--sites" in done.stdout

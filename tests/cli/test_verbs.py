"""A verb for every public function, with the signature that Python reads; earlier names work."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys

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
        typed = {f"--{parameter.name.replace('_', '-')}", parameter.name, stands}
        assert parameter.name in UNSAID or typed & there, parameter


def test_words_of_a_parameter_are_the_docstrings():
    (found,) = (one for one in signatures("spectral") if one.name == "intruders")
    said = {parameter.name: parameter.help for parameter in found.parameters}
    assert said["k"] == "Vectors per matrix (paper: 10)."
    assert said["eps"] == "Threshold on the largest |cosine| (paper: 0.5)."
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

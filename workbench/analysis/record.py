"""What an analysis says of itself, declared once, beside its function.

    @analysis("Which heads attend elsewhere?", takes={"prompts": "task"}, passes=2)
    def patterns(pair: CheckpointPair, prompts: PromptSet, *, device="cpu", ...) -> Result: ...

The catalogue collects the records; studies, the plan of what will run, the command line and the
tables of methods are derived from them, from the signature and from the docstring. What is given
is literal: the command line reads it from the source, without importing torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

from workbench.analysis import boundary, cost
from workbench.analysis.rendering import noted, rendered
from workbench.analysis.running import given
from workbench.loaders.pair import CheckpointPair
from workbench.progress import heartbeat

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Analysis:
    """One method. key: as in Result.analysis, and where its file lies: "spectral.intruders".
    question: what it answers, in one line. function: the public one. paper: where it is from.
    example: of its command, what follows the two checkpoints.
    passes: forward passes over its prompts and texts with its defaults; 0 where only weights are
    read and decomposed, None where nothing is foretold. plans: it tells a plan of its own, and asks
    for `large=True` where that is long.
    quick, few: what the command line chooses where nothing is typed, so that a model of 135M
    weights takes a minute or two on two cores; with --full it leaves the function's own defaults.
    quick: values by argument; few: the most prompts that are taken of a file, by argument.
    quick_passes: `passes` with these values.
    takes: which argument takes which attribute of a `Study`; None where no study runs it, and where
    an attribute is None the study has no data for it, unless it can do without (`study.OPTIONAL`).
    settings: an attribute whose items are arguments by name. needs: further attributes without
    which it is not asked. along: it is also followed along a training run. texts: it only runs the
    models on texts and answers, or is of virtual tokens, so that it is also asked of a member that
    changes no weight. items: its Result keeps single items, lost and won, or texts that were
    written, which the command line prints some of."""

    key: str
    question: str
    function: Callable[..., Any]
    paper: str = ""
    example: str = ""
    passes: float | None = None
    plans: bool = False
    quick: Mapping[str, Any] = field(default_factory=dict)
    few: Mapping[str, int] = field(default_factory=dict)
    quick_passes: float | None = None
    takes: Mapping[str, str] | None = None
    settings: str | None = None
    needs: tuple[str, ...] = ()
    along: bool = False
    texts: bool = False
    items: bool = False

    @property
    def runs(self) -> bool:
        """Whether models are run."""
        return self.passes != 0

    def foretold(self, arguments: Mapping[str, Any]) -> float | None:
        """Its passes with these arguments: `quick_passes` where all of `quick` is among them."""
        quick = all(str(arguments.get(name)) == str(value) for name, value in self.quick.items())
        return self.quick_passes if quick and self.quick_passes is not None else self.passes


RECORDS: dict[str, Analysis] = {}


def analysis(question: str, **known: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare an analysis; known: fields of `Analysis`. Its arguments are looked at before it runs
    (`boundary`), prompts that are chats are rendered (`rendering`), and how long it will take is
    said where that is long (`cost`)."""

    def declared(function: Callable[P, R]) -> Callable[P, R]:
        key = function.__module__.partition(".")[2]

        @wraps(function)
        def asked(*args: P.args, **kwargs: P.kwargs) -> R:
            known = _signature(function)
            bound = known.bind(*args, **kwargs)
            for name, value in given(known.parameters).items():
                bound.arguments.setdefault(name, value)
            for name, value in bound.arguments.items():
                kind = str(known.parameters[name].annotation)
                made = boundary.checked(function.__name__, name, kind, value)
                if isinstance(made, CheckpointPair) and not record.texts:
                    made.require_weights()
                bound.arguments[name] = made
            bound.apply_defaults()
            notes = rendered(bound.arguments)
            if not record.plans:
                cost.tell(key, record.foretold(bound.arguments), bound.arguments)
            with heartbeat(key):
                made = function(*bound.args, **bound.kwargs)
            return noted(made, notes)

        record = RECORDS[key] = Analysis(key, question, asked, **known)
        return asked

    return declared


@cache
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)

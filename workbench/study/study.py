"""What to compare: a family with the data its analyses need, and what each is called with."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from workbench.analysis.rendering import rendered
from workbench.errors import WorkbenchError, some
from workbench.files.reading import is_count
from workbench.loaders import Family
from workbench.study.catalogue import ANALYSES, Analysis
from workbench.study.units import Unit
from workbench.tasks import Prompt, PromptSet
from workbench.tasks.batching import read_as
from workbench.tasks.desiderata import Counterfactuals
from workbench.tasks.transforms import is_chat

STEPS = ".steps"  # how results along a training run are called
# What an analysis can do without: sampled where not given, or nothing more to score.
LATER = "results"  # what the analyses before this one gave, which is not there yet
OPTIONAL = ("texts", "others", "everything", "task_name", LATER)


@dataclass(frozen=True)
class Chain:
    """Members that were learned one after the other. stages: in that order; tasks: stage -> prompts
    of what it learned; others: prompts of tasks no stage learned."""

    stages: Family
    tasks: Mapping[str, PromptSet]
    others: Sequence[PromptSet] = ()


@dataclass(frozen=True)
class Study:
    """What to compare. task: prompts of the fine-tuned task; without it only the weights and the
    loss are compared. prompts: further prompt sets, e.g. of pre-training. texts: held-out
    pre-training-like text; None takes samples of the base. steps: checkpoints along a training
    run. groups: prompts to be told apart by TuCo, the fine-tuning-like ones first; None takes
    task and prompts. dtype: of every run of a model; decompositions are float32. options: analysis
    key -> arguments other than the defaults. only: keys of the analyses to run; None for all.
    corrupted: a corrupt partner of each prompt of the task, for patching within one model. pairs:
    counterfactual pairs, for masks. conjugates: name -> the task's prompts behind a conjugation;
    learned: prompts of what was fine-tuned, where the task is a capability that may be lost;
    lessons: prompts to learn it again with. worked: how `faithfulness` takes the task's prompts
    apart, its arguments by name; None where they hold no worked steps.
    chains: members learned one after the other, by the chain's name. also: further studies of the
    same base by name, reported with this one: other members, another behaviour. phantoms: how many
    models that learned nothing are drawn in the likeness of each member, those of `also` included,
    for the same analyses; see `workbench.study.phantoms`."""

    family: Family
    task: PromptSet | None = None
    prompts: Sequence[PromptSet] = ()
    texts: Sequence[str] | None = None
    steps: Family | None = None
    groups: Mapping[str, PromptSet | Sequence[str]] | None = None
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    only: tuple[str, ...] | None = None
    corrupted: PromptSet | None = None
    pairs: Counterfactuals | None = None
    conjugates: Mapping[str, PromptSet] | None = None
    learned: PromptSet | None = None
    lessons: PromptSet | None = None
    worked: Mapping[str, Any] | None = None
    chains: Mapping[str, Chain] = field(default_factory=dict)
    also: Mapping[str, Study] = field(default_factory=dict)
    phantoms: int = 0

    def __post_init__(self) -> None:
        known = [a.key for a in ANALYSES]
        unknown = [key for key in self.only or () if key not in known]
        if unknown:
            raise WorkbenchError(f"Unknown analysis {unknown[0]!r}; there are {', '.join(known)}.")
        if not is_count(self.phantoms, 0):
            raise WorkbenchError(
                f"Expected a number of phantoms for each model, found {self.phantoms!r}."
            )

    @property
    def analyses(self) -> list[Analysis]:
        """The catalogue, or `only` these of it, less what this study has no data for."""
        found = [a for a in ANALYSES if self.only is None or a.key in self.only]
        return [a for a in found if all(getattr(self, n) is not None for n in _required(a))]

    @property
    def others(self) -> list[PromptSet]:
        """The further prompt sets."""
        return list(self.prompts)

    @property
    def everything(self) -> list[PromptSet]:
        """Every prompt set, the task's first."""
        return [*([self.task] if self.task else []), *self.prompts]

    @property
    def task_name(self) -> str | None:
        """What the task's prompts are called."""
        return self.task.name if self.task else None

    @property
    def sets(self) -> dict[str, PromptSet | Sequence[str]] | None:
        """Prompts to be told apart, by name: `groups`, or every prompt set."""
        if self.task is None:
            return None
        return dict(self.groups or {one.name: one for one in self.everything})

    def narrowed(self, only: Sequence[str]) -> Study:
        """This study and those beside it with these of their analyses alone; all where none is
        named. Raises WorkbenchError where a name is unknown, or there is no data for any."""
        if not only:
            return self
        found = self._narrowed(only)
        if not any(study.analyses for study in (found, *found.also.values())):
            raise WorkbenchError(
                f"There is no data for {', '.join(only)}; give prompts of the task (--prompts)."
            )
        return found

    def _narrowed(self, only: Sequence[str]) -> Study:
        replace(self, only=tuple(only))  # an unknown name is told in any case
        kept = tuple(key for key in only if self.only is None or key in self.only)
        also = {name: study._narrowed(only) for name, study in self.also.items()}
        return replace(self, only=kept, also=also)

    def without(self, names: Collection[str]) -> Study:
        """This study and those beside it without these members; chains of any of them go too.
        Raises WorkbenchError where this one has no other."""
        if not names:
            return self
        left = {n: m for n, m in self.family.members.items() if n not in names}
        if not left:
            raise WorkbenchError(
                f"No fine-tuned model is left without {', '.join(names)}; give another --member."
            )
        also = {
            name: study.without(names) for name, study in self.also.items()
            if not set(study.family.members) <= {*names}
        }  # fmt: skip
        chains = {
            name: chain for name, chain in self.chains.items()
            if not set(chain.stages.members) & {*names}
        }  # fmt: skip
        return replace(self, family=Family(self.family.base, left), also=also, chains=chains)

    def first_prompts(self) -> list[str]:
        """The first prompt of every set as the base's tokenizer cuts it, in its chat template where
        it is a chat. Raises WorkbenchError where members' own templates make different ones."""
        sets = [one for one in (self.task, *self.prompts) if one is not None and len(one)]
        if not sets:
            return []
        words = self.family.base.tokenizer()
        return [f"{one.name}: {read_as(words, self._first(one))}" for one in sets]

    def _first(self, prompts: PromptSet) -> Prompt:
        if not is_chat(prompts):
            return prompts[0]
        made: dict[str, Prompt] = {}
        for pair in self.family:
            given: dict[str, Any] = {"pair": pair, "prompts": prompts[:1]}
            rendered(given)
            made[pair.name] = given["prompts"][0]
        if len({one.text for one in made.values()}) > 1:
            raise WorkbenchError(
                f"Expected one chat template for {prompts.name!r} of all fine-tuned "
                f"models, found that those of {some([*made])} differ, so each would be "
                'asked a different question; give template="base" or "plain" '
                "(--template), or compare each model by itself."
            )
        return next(iter(made.values()))

    def arguments(self, analysis: Analysis) -> dict[str, Any]:
        """What one analysis is called with."""
        found: dict[str, Any] = {"device": self.device}
        if analysis.runs:
            found |= {"dtype": self.dtype, "seed": self.seed}
        takes = (analysis.takes or {}).items()
        found |= {name: getattr(self, source) for name, source in takes if source != LATER}
        if analysis.settings:
            found |= getattr(self, analysis.settings) or {}
        if analysis.plans:
            found["large"] = True  # a study has a plan of its own
        return found | self.options.get(analysis.key, {})

    def parts(self) -> list[Part]:
        """The analyses of this study and of those beside it."""
        return [
            Part(f"{analysis.key}.{name}" if name else analysis.key, analysis, one, one.family)
            for name, one in {"": self, **self.also}.items()
            for analysis in one.analyses
        ]

    def followed(self) -> list[Part]:
        """What is followed along a training run; of the scores, the fine-tuned task's alone."""
        if self.steps is None:
            return []
        along = replace(self, prompts=())
        return [
            Part(f"{analysis.key}{STEPS}", analysis, along, self.steps)
            for analysis in self.analyses
            if analysis.along
        ]


def _required(analysis: Analysis) -> list[str]:
    """Attributes of a study that an analysis is not run without."""
    sources = [*(analysis.takes or {}).values(), *analysis.needs]
    return [
        name for name in (*sources, *([analysis.settings] if analysis.settings else []))
        if name not in OPTIONAL
    ]  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One analysis over one family of a study. name: the folder of its Result."""

    name: str
    analysis: Analysis
    study: Study
    family: Family

    def units(self, **known: Any) -> list[Unit]:
        arguments = self.study.arguments(self.analysis) | known
        return [Unit(pair, self.analysis.function, arguments) for pair in self.family]

"""When is an answer right? What a set of prompts asks of a model, beside its prompts.

Records alone: `tasks.answers` does what they say, whichever analysis asks. Each has a `name`, by
which files and the command line know it, and plain values.
"""

from __future__ import annotations

import hashlib
import inspect
import marshal
import math
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from types import FunctionType, MethodType
from typing import Any, ClassVar, get_args

from workbench.errors import WorkbenchError
from workbench.files.reading import is_count, is_number

BYS = ("sum", "byte", "unconditional")
ALIKE = ("case", "space", "punctuation", "number")
NUMBER = r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+"


@dataclass(frozen=True)
class Continuation:
    """An answer is right if greedy decoding gives exactly the target after the prompt, and the most
    likely next token does not continue its last word or number."""

    name: ClassVar[str] = "continuation"


@dataclass(frozen=True)
class Choices:
    """Right where the target is likelier than every foil, each read behind the prompt; one that is
    as likely as the best foil is not.

    by: what is compared. "sum": the log-probability of a choice, in nats (lm-eval's acc). "byte":
    that a byte of the choice without its leading space (acc_norm, in bytes as acc_bytes).
    "unconditional": that less the choice's own without the prompt (acc_mutual_info), Holtzman et
    al. 2021 (arXiv 2104.08315).
    """

    name: ClassVar[str] = "choices"
    by: str = "sum"

    def __post_init__(self) -> None:
        if self.by not in BYS:
            raise WorkbenchError(f"Expected choices by {', '.join(BYS)}, found {self.by!r}.")


@dataclass(frozen=True)
class Generation:
    """An answer is right if the match in the written text equals the match in the target, or the
    target itself if nothing matches in it (a bare "18" with "The answer is (.*)").

    length: tokens at most. stop: the text ends before the first of these. extract: a regular
    expression, whose first group that matched counts, else all of it; "" takes the whole text; or a
    function text -> text, None if nothing is found. pick: which of several matches, from 0, or from
    the end if negative. alike: differences that do not count, of "case", "space" (at the ends, and
    how much), "punctuation", and "number" (1800, 1,800.0 and $1800 are one: separators of thousands
    and a currency's sign go). samples: texts a prompt; one is written greedily where `temperature`
    is 0, else all are drawn at it, of the tokens with `top_p` of the probability; the score of a
    prompt is then the share of right ones. passes: the k of pass@k that are told where there are
    several samples.
    """

    name: ClassVar[str] = "generation"
    length: int = 256
    stop: tuple[str, ...] = ()
    extract: str | Callable[[str], str | None] = ""
    pick: int = -1
    alike: tuple[str, ...] = ("case", "space")
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    passes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("stop", "alike", "passes"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        unknown = [one for one in self.alike if one not in ALIKE]
        if unknown:
            raise WorkbenchError(f"Expected alike of {', '.join(ALIKE)}, found {unknown[0]!r}.")
        if not all(isinstance(one, str) and one for one in self.stop):
            raise WorkbenchError(f"Expected stop to be texts, found {self.stop!r}.")
        for name in ("length", "samples"):
            if not is_count(getattr(self, name)):
                raise WorkbenchError(
                    f"Expected {name} to be a whole number from 1 on, found {getattr(self, name)}."
                )
        if not (is_number(self.temperature) and self.temperature >= 0):
            raise WorkbenchError(f"Expected a temperature of 0 or more, found {self.temperature}.")
        if not (is_number(self.top_p) and 0 < self.top_p <= 1):
            raise WorkbenchError(f"Expected top_p in (0, 1], found {self.top_p}.")
        if self.samples > 1 and not self.temperature:
            raise WorkbenchError(
                f"{self.samples} samples at temperature 0 are all the same; give "
                "temperature=0.8, or one sample."
            )
        if not all(is_count(k) and k <= self.samples for k in self.passes):
            raise WorkbenchError(
                f"Expected passes of 1 to {self.samples}, the number of samples, found "
                f"{self.passes}."
            )
        if isinstance(self.extract, str):
            try:
                re.compile(self.extract)
            except re.error as error:
                raise WorkbenchError(
                    f"extract {self.extract!r} is not a regular expression ({error})."
                ) from error

    def found(self, text: str) -> str | None:
        """What counts of a text, as it is compared; None where nothing is found."""
        if callable(self.extract):
            said = self.extract(text)
        elif self.extract:
            matches = [m for m in re.finditer(self.extract, text) if m.group()]
            inside = -len(matches) <= self.pick < len(matches)
            match = matches[self.pick] if inside else None
            said = match and next((g for g in match.groups() if g is not None), match.group())
        else:
            said = text
        return None if said is None else self._plain(said)

    def right(self, text: str, target: str) -> bool:
        """Whether a written text gives the target's answer."""
        said, wanted = self.found(text), self.found(target)
        if said is None:
            return False
        if wanted is None:
            wanted = self._plain(target.strip())
        if "number" in self.alike and (a := _number(said)) is not None:
            b = _number(wanted)
            return b is not None and math.isclose(a, b, rel_tol=1e-9)
        return said == wanted

    def _plain(self, text: str) -> str:
        if "case" in self.alike:
            text = text.casefold()
        if "punctuation" in self.alike:
            text = re.sub(r"[^\w\s]", "", text)
        if "space" in self.alike or "number" in self.alike:
            text = " ".join(text.split())
        return text


@dataclass(frozen=True)
class Loss:
    """No answer is right or wrong: the whole text counts, by its loss in nats a token and in bits a
    byte. For plain texts."""

    name: ClassVar[str] = "loss"


Scorer = Continuation | Choices | Generation | Loss
SCORERS: dict[str, Any] = {kind.name: kind for kind in get_args(Scorer)}
# The last number of the worked solution against that of what is written; the next question would be
# another shot's.
GSM8K = Generation(stop=("Question:",), extract=NUMBER, alike=("number",))


def as_data(scorer: Scorer) -> dict[str, Any]:
    """A scorer as JSON; a function by its name and a digest of what it is written like and holds,
    but not of what its module holds."""
    made: dict[str, Any] = {"name": scorer.name}
    for one in fields(scorer):
        value = getattr(scorer, one.name)
        made[one.name] = _named(value) if callable(value) else value
    return made


def from_data(found: Any) -> Scorer:
    """The scorer of `as_data`; raises WorkbenchError for anything else."""
    if not isinstance(found, Mapping) or found.get("name") not in SCORERS:
        raise WorkbenchError(f"Expected a scorer of {', '.join(SCORERS)}, found {found!r}.")
    return _made(SCORERS[found["name"]], {k: v for k, v in found.items() if k != "name"})


def scorer(text: str) -> Scorer:
    """A scorer as it is typed: its name, then NAME=VALUE separated by spaces, quoted as in a shell;
    values of several parts are separated by "|". "gsm8k" is that of GSM8K.

        choices by=byte
        generation length=64 stop="Question:|\\n\\n" extract="#### (-?[0-9.,]+)" alike=number
    """
    try:
        name, *settings = shlex.split(text)
    except ValueError as error:
        raise WorkbenchError(f"The scorer {text!r} cannot be read ({error}).") from error
    if name == "gsm8k" and not settings:
        return GSM8K
    if name not in SCORERS:
        raise WorkbenchError(f"Expected a scorer of {', '.join(SCORERS)} or gsm8k, found {name!r}.")
    given = {}
    for one in settings:
        key, equals, value = one.partition("=")
        if not equals:
            raise WorkbenchError(f"Expected NAME=VALUE in the scorer {text!r}, found {one!r}.")
        given[key] = _typed(key, value.replace(r"\n", "\n"))
    return _made(SCORERS[name], given)


def _typed(name: str, value: str) -> Any:
    """A value as its field takes it."""
    try:
        if name in ("stop", "alike"):
            return tuple(part for part in value.split("|") if part)
        if name == "passes":
            return tuple(int(part) for part in value.split("|"))
        if name in ("length", "pick", "samples", "seed"):
            return int(value)
        if name in ("temperature", "top_p"):
            return float(value)
    except ValueError as error:
        raise WorkbenchError(f"Expected a number for {name}, found {value!r}.") from error
    return value


def _made(kind: Any, given: Mapping[str, Any]) -> Any:
    known = [one.name for one in fields(kind)]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise WorkbenchError(
            f"The scorer {kind.name} has no setting {unknown[0]!r}; it has "
            f"{', '.join(known) or 'none'}."
        )
    return kind(**given)


def _named(function: Callable[..., Any]) -> str:
    kind = function if hasattr(function, "__qualname__") else type(function)
    digest = hashlib.sha256(_content(function).encode()).hexdigest()[:12]
    return f"{getattr(kind, '__module__', 'builtins')}.{kind.__qualname__} {digest}"


def _content(one: Any, around: tuple[int, ...] = ()) -> str:
    """What tells a function from others: its source, or its code where there is none, and the
    values that it holds, as a closure, a default, a partial or an object that is called. around:
    what it stands in, which it may name again."""
    if id(one) in around:
        return "itself"
    if isinstance(one, partial):
        held: list[Any] = [one.func, *one.args, *sorted(one.keywords.items())]
    elif isinstance(one, MethodType):
        held = [one.__func__, one.__self__]
    elif isinstance(one, FunctionType):
        cells = inspect.getclosurevars(one).nonlocals
        held = [*(one.__defaults__ or ()), *(one.__kwdefaults__ or {}).items(), *cells.items()]
    elif callable(one) and not isinstance(one, type) and hasattr(one, "__dict__"):
        held = [type(one).__call__, *vars(one).items()]
    elif isinstance(one, tuple):
        held = [*one]
    else:
        return repr(one)
    return repr([_source(one), *(_content(part, (*around, id(one))) for part in held)])


def _source(one: Any) -> str:
    """ "" of what is no function."""
    if not isinstance(one, FunctionType):
        return ""
    try:
        return inspect.getsource(one)
    except (OSError, TypeError):  # typed at a prompt, or made of a text
        return marshal.dumps(one.__code__).hex()


def _number(text: str) -> float | None:
    """The value of a text that is a number and nothing else; separators of thousands, a currency's
    sign, a per cent's and a full stop behind it go."""
    try:
        found = float(re.sub(r"[\s,$€£%]", "", text).rstrip("."))
    except ValueError:
        return None
    return found if math.isfinite(found) else None

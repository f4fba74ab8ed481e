"""A chat template is a program that came with a checkpoint: rendered in a sandbox, within bounds.

transformers renders it where it reaches no file, module or attribute of Python's own. What that
sandbox leaves open, loops within loops and texts that double, ends here in seconds.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from workbench.errors import WorkbenchError, reason

SECONDS = 5.0  # of one text; a template takes some milliseconds
ROOM = 1 << 30  # bytes that rendering may take


def rendered(tokenizer: Any, text: str) -> str:
    """`text` as a user's message in the tokenizer's chat template, up to the answer.

    Raises WorkbenchError where there is no template, it fails, or it takes more than SECONDS or
    ROOM.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        raise WorkbenchError("This tokenizer has no chat template; give plain prompts.")
    try:
        for one in template.values() if isinstance(template, dict) else (template,):
            _require_no_powers(one)
        with _bounded():
            return tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
    except Exception as error:  # a template raises whatever it likes
        raise WorkbenchError(
            f"This tokenizer's chat template cannot be rendered ({reason(error)}); mend it or give "
            "plain prompts."
        ) from error


def _require_no_powers(template: str) -> None:
    """Raise ValueError at `**`: one such step can take hours, and nothing can stop it midway."""
    import jinja2

    parts = jinja2.Environment().lex(template)
    if any((kind, value) == ("operator", "**") for _, kind, value in parts):
        raise ValueError("it takes a power (**)")


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Python code inside raises TimeoutError after SECONDS, once the step in hand is done, and
    ValueError beyond ROOM."""
    until = time.monotonic() + SECONDS

    def step(frame: FrameType, event: str, argument: Any) -> Any:
        if time.monotonic() > until:
            raise TimeoutError(f"still busy after {SECONDS:g} s")
        return step

    before = sys.gettrace()
    with _less_memory():
        sys.settrace(step)
        try:
            yield
        finally:
            sys.settrace(before)


@contextlib.contextmanager
def _less_memory() -> Iterator[None]:
    """ROOM more address space than the process has; no bound where the system knows none."""
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    import psutil

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    room = psutil.Process().memory_info().vms + ROOM
    limits = [room, *(one for one in (soft, hard) if one != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    except MemoryError:
        raise ValueError(f"it takes more than {ROOM >> 30} GiB") from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

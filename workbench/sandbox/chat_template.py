"""A chat template is a program that came with a checkpoint: rendered in a sandbox, within bounds.

transformers renders it where it reaches no file, module or attribute of Python's own. What that
sandbox leaves open, loops within loops, texts that double, one step that takes for ever, ends in
seconds: it is rendered in another process, see `workbench.sandbox.process`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.errors import WorkbenchError, reason
from workbench.sandbox.process import bounded

SECONDS = 5.0  # of one conversation; a template takes some milliseconds
ROOM = 1 << 30  # bytes that rendering may take


def rendered(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
    """A conversation in the tokenizer's chat template, up to the assistant's answer.

    messages: each {"role": ..., "content": ...}.

    Raises WorkbenchError where there is no template, it fails, or it takes more than SECONDS or
    ROOM.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise WorkbenchError("This tokenizer has no chat template; give plain prompts.")
    try:
        return bounded(
            "render",
            seconds=SECONDS,
            room=ROOM,
            template=tokenizer.get_chat_template(),
            messages=[dict(one) for one in messages],
            special={name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        )
    except (ValueError, TimeoutError) as error:
        raise WorkbenchError(
            f"This tokenizer's chat template cannot be rendered ({reason(error)}); fix "
            "it or give plain prompts."
        ) from error

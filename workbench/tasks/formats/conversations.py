"""Which messages lead to which answer? Conversations as TRL, OpenAI and ShareGPT write them.

The assistant's last message is the answer, everything before it is what the model is given. Calls
of tools and what these gave back are left out, which the reader says of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.errors import WorkbenchError

# What a speaker is called -> the role in a chat template.
ROLES = {
    "system": "system", "developer": "developer", "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant",
    "bot": "assistant", "bing": "assistant", "bard": "assistant",
}  # fmt: skip
TOOLS = ("tool", "function", "function_call", "observation", "ipython", "tool_call",
         "tool_response")  # fmt: skip
CALLS = ("tool_calls", "function_call")  # of a message


def conversation(given: Any, name: str, left_out: list[int]) -> list[dict[str, str]]:
    """Messages of role and content. left_out: gets an entry where tools are left out."""
    if not isinstance(given, list) or not given:
        raise WorkbenchError(f"{name} must be a list of messages, not {type(given).__name__}.")
    told = []
    for number, one in enumerate(given, 1):
        if not isinstance(one, Mapping):
            raise WorkbenchError(f"message {number} must be an object of role and content.")
        role = one.get("role", one.get("from"))
        content = one["content"] if one.get("content") is not None else one.get("value")
        calls = any(one.get(key) for key in CALLS)
        if role in TOOLS or (calls and not content):
            left_out.append(number)
            continue
        if not isinstance(role, str) or role not in ROLES:
            raise WorkbenchError(
                f"message {number} has the role {str(role)[:40]!r}; use system, user or assistant."
            )
        left_out.extend([number] if calls else [])
        told.append({"role": ROLES[role], "content": _content(content, number)})
    return told


def _content(content: Any, number: int) -> str:
    """The text of a message, given as a text or in parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [one.get("text") if isinstance(one, Mapping) else one for one in content]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts):
            return "".join(texts)
    raise WorkbenchError(f"message {number} needs a content of text alone.")


def before_answer(told: list[dict[str, str]]) -> dict[str, Any]:
    """The fields of a Prompt: the answer without the white space before it, the messages that lead
    to it, and the last of them as the prompt."""
    if not any(one["role"] == "assistant" for one in told):
        raise WorkbenchError("there is no message of the assistant, which would be the answer.")
    if told[-1]["role"] != "assistant":
        raise WorkbenchError(
            f"the last message is the {told[-1]['role']}'s, but the last must be the "
            "assistant's, which is the answer."
        )
    *before, answer = told
    if not before:
        raise WorkbenchError("there is no message before the assistant's answer.")
    return {
        "prompt": before[-1]["content"],
        "target": answer["content"].lstrip(),
        "messages": before,
    }

"""The process behind `workbench.sandbox.process`: one request a line, an answer each in one.

A script that stands alone. transformers is loaded without torch, which text does not need.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

LONGEST = 1 << 24  # characters of a text that is handed back
KEPT: dict[str, Any] = {}


def render(template: str, text: str, special: dict[str, Any]) -> str:
    """`text` as a user's message in a chat template, up to the answer."""
    from transformers.utils.chat_template_utils import render_jinja_template

    (made,), _ = render_jinja_template(
        conversations=[[{"role": "user", "content": text}]],
        chat_template=template,
        add_generation_prompt=True,
        **special,
    )
    if len(made) > LONGEST:
        raise ValueError(f"it makes {len(made)} characters of {len(text)}")
    return made


def load(folder: str) -> None:
    """Make the tokenizer of a folder, for `read`."""
    from transformers import AutoTokenizer

    KEPT["words"] = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )


def read(texts: list[str]) -> int:
    """How many tokens the tokenizer that was loaded makes of these texts, and back."""
    total = 0
    for text in texts:
        ids = KEPT["words"](text)["input_ids"]
        KEPT["words"].decode(ids)
        total += len(ids)
    return total


def answer(request: dict[str, Any]) -> dict[str, Any]:
    task = {"render": render, "load": load, "read": read}[request["task"]]
    _limit(request["seconds"], request["room"])
    try:
        return {"made": task(**request["given"])}
    except MemoryError:
        return {"error": f"it takes more than {request['room'] >> 30} GiB"}
    except BaseException as error:  # what Rust panics with is no Exception
        return {"error": (str(error) or type(error).__name__)[:1000]}
    finally:
        _limit(0, None)


def _limit(seconds: float, room: int | None) -> None:
    """Bounds for what comes next; 0 and None for none."""
    if hasattr(signal, "setitimer"):  # should the process that asked be gone; nobody catches it
        signal.setitimer(signal.ITIMER_REAL, 2 * seconds)
    if not sys.platform.startswith("linux"):
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    most = hard if room is None else taken + room
    resource.setrlimit(
        resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard)
    )


def main() -> None:
    # What libraries print is no answer.
    out = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    import transformers

    transformers.logging.set_verbosity_error()
    print(json.dumps({"made": None}), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()

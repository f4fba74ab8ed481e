"""The process behind `workbench.sandbox.process`: one request a line, an answer each in one.

A script that stands alone. transformers is loaded without torch, which text does not need.
"""

from __future__ import annotations

import decimal
import json
import os
import signal
import sys
from typing import Any

LONGEST = 1 << 24  # characters of a text that is handed back
MOST_ROWS = 1_000_000  # of a table
KEPT: dict[str, Any] = {}


def render(template: str, messages: list[dict[str, str]], special: dict[str, Any]) -> str:
    """A conversation in a chat template, up to the answer."""
    from transformers.utils.chat_template_utils import render_jinja_template

    (made,), _ = render_jinja_template(
        conversations=[messages],
        chat_template=template,
        add_generation_prompt=True,
        **special,
    )
    if len(made) > LONGEST:
        told = sum(len(one["content"]) for one in messages)
        raise ValueError(f"it makes {len(made)} characters of {told}")
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


def table(paths: list[str], kind: str, most: int) -> list[dict[str, Any]]:
    """The rows of tables of Arrow, one after the other: files of "parquet", or "stream"s of
    batches. What is no text, number, list or object is None, a time its text. most: bytes of them
    as JSON."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pa.set_memory_pool(pa.system_memory_pool())  # others reserve more than they take
    rows: list[dict[str, Any]] = []
    size = 0
    for path in paths:
        with open(path, "rb") as raw:
            if kind == "parquet":
                source = pq.ParquetFile(raw)
                schema, batches = source.schema_arrow, source.iter_batches(1000, use_threads=False)
            else:
                batches = pa.ipc.open_stream(raw)
                schema = batches.schema
            if len(set(schema.names)) < len(schema.names):
                raise ValueError("a column occurs twice in it")
            for batch in batches:
                batch.validate(full=True)  # which a reader of Arrow takes on trust
                if size + batch.nbytes > most:
                    raise ValueError(f"it holds more than {most >> 20} MiB")
                told = json.dumps(batch.to_pylist(), default=_said)
                size += len(told)
                rows += json.loads(told)
                if len(rows) > MOST_ROWS:
                    raise ValueError(f"it holds more than {MOST_ROWS} rows")
    if size > most:
        raise ValueError(f"it holds more than {most >> 20} MiB")
    return rows


def _said(value: Any) -> Any:
    """What JSON has no word for: a time or a decimal number as its text."""
    if isinstance(value, decimal.Decimal):
        return str(value)
    return value.isoformat() if hasattr(value, "isoformat") else None


def answer(request: dict[str, Any]) -> dict[str, Any]:
    task = {"render": render, "load": load, "read": read, "table": table}[request["task"]]
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

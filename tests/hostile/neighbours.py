"""What somebody may lay beside a result, or write into a run's own account of itself."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from tests.hostile.mangled import TEXTS, broken, json_bytes

Files = dict[str, bytes]
ROW = {"item": "names", "status": "ok", "found": "all", "remedy": "", "member": "full"}
ABOUT = {
    "title": "What did it do?", "results": ["kept", "other"], "failures": ["a: b"],
    "preflight": [ROW, ROW], "command": "workbench compare", "asked": ["t: a|b -> c"],
}  # fmt: skip
PLACES = ("results/beside", "results/kept.old", "results/.kept.host-1.abcdefgh", "results", ".",
          "figures", "failed", "units/0")  # fmt: skip
NAMES = ("result.json", "table.parquet", "tensors.safetensors", "run.json", "report.html", "01.txt",
         "kept.rank.png", "result.json/result.json")  # fmt: skip
TELLING = (
    b"", b"{}", b"[]", b'{"format": 1}', b'{"format": 1, "analysis": 3}', b"mine",
    b'{"format": 1, "analysis": ["forgetting.retention"]}', b'{"format": 1, "analysis": "x"}',
    b'{"format": 1, "analysis": "forgetting.retention"}', b'{"results": ["../../etc"]}',
)  # fmt: skip


def beside() -> st.SearchStrategy[Files]:
    """Files in places of a run."""
    names = st.tuples(st.sampled_from(PLACES), st.sampled_from(NAMES)).map("/".join)
    return st.dictionaries(names, st.sampled_from(TELLING), max_size=4)


def about() -> st.SearchStrategy[bytes]:
    """run.json, damaged or with names that lead elsewhere."""
    text = st.one_of(st.sampled_from(TEXTS), st.sampled_from(["kept", "other", "../results/kept"]))
    names = st.lists(text.filter(lambda t: "\ud800" not in t), max_size=4)
    told = names.map(lambda found: json.dumps(ABOUT | {"results": found}).encode())
    return st.one_of(json_bytes(ABOUT, ("figures", "evil")), told, broken(whole_about()))


def whole_about() -> bytes:
    return json.dumps(ABOUT).encode()


@st.composite
def runs(draw: st.DrawFn, kept: Files, other: Files) -> Files:
    """A run of two results, of which `run.json`, the second or what lies beside is hostile."""
    whole = whole_run(kept, other)
    kind = draw(st.sampled_from(["about", "beside", "both", "lost"]))
    more: dict[str, Any] = {}
    if kind in ("about", "both"):
        more |= {"run.json": draw(about())}
    if kind in ("beside", "both"):
        more |= {name: raw for name, raw in draw(beside()).items() if name not in whole}
    if kind == "lost":
        whole.pop(draw(st.sampled_from(sorted(whole))))
    return placed(whole | more)


def whole_run(kept: Files, other: Files) -> Files:
    told = {"run.json": whole_about()}
    for name, files in (("kept", kept), ("other", other)):
        told |= {f"results/{name}/{file}": raw for file, raw in files.items()}
    return told


def placed(files: Files) -> Files:
    """Those files that can lie beside each other: none is another one's folder."""
    names = {name.removeprefix("./"): raw for name, raw in files.items()}
    return {
        name: raw for name, raw in names.items()
        if not any(other.startswith(f"{name}/") for other in names)
    }  # fmt: skip

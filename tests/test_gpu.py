"""`make gpu`: a part costs only itself, and the CPU's stored numbers are today's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import analyses
from benchmarks.gpu import PARTS, Part, drive
from tests.calls import write_pair

SAYS = """
import json, pathlib, sys, time
pathlib.Path(sys.argv[1]).write_text(json.dumps({{"headline": "{}"}}))
time.sleep({})
"""


def part(folder: Path, name: str, code: str, limit: float = 30) -> Part:
    """A script as a part, told where its file is to be."""
    script = folder / f"{name}.py"
    script.write_text(code)
    return Part(name, f"{script} {{out}}/{name}.json", limit, name)


def test_parts_cost_only_themselves(tmp_path: Path, capsys):
    out = tmp_path / "out"
    parts = (
        part(tmp_path, "good", SAYS.format("fine", 0)),
        part(tmp_path, "bad", "raise SystemExit('it broke')"),
        part(tmp_path, "slow", SAYS.format("half", 60), limit=3),
        part(tmp_path, "later", SAYS.format("too", 0)),
    )
    assert drive(parts, out, device="cuda", shape="tiny") == 1
    found = json.loads((out / "gpu.json").read_text())["parts"]
    told = {row["part"]: (row["status"], row["found"]) for row in found}
    assert told == {
        "good": ("ok", "fine"), "bad": ("failed", "it broke"), "slow": ("timed out", "half"),
        "later": ("ok", "too"),
    }  # fmt: skip
    assert found[2]["seconds"] < 20
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == ["good", "bad", "slow", "later"]
    assert "| later |" in lines[-1]
    assert "timed out" in (out / "gpu.md").read_text()
    assert not list(out.glob(".*"))  # no unfinished file


def test_all_well_is_zero_and_an_old_file_is_not_taken_for_new(tmp_path: Path):
    well = part(tmp_path, "good", SAYS.format("fine", 0))
    assert drive((well,), tmp_path, device="cpu", shape="tiny") == 0
    quiet = part(tmp_path, "good", "")
    assert drive((quiet,), tmp_path, device="cpu", shape="tiny") == 0
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"][0]["found"] == ""


def test_the_limits_are_eight_minutes():
    assert sum(one.limit for one in PARTS) <= 8 * 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("pair")
    assert analyses.signature(write_pair(made)) == analyses.stored()["signature"]
    return made


def test_the_stored_numbers_have_every_analysis():
    known = analyses.stored()
    for key, dtype in analyses.everything():
        assert key in known[dtype]


@pytest.mark.parametrize("key", analyses.QUICK)
def test_the_stored_numbers_are_todays(key: str, folder: Path):
    """Where one fails for a reason: make gpu-reference."""
    made, _ = analyses.run(str(folder), key, "float32", "cpu")
    row = analyses.judged(made, analyses.stored(), key, "float32")
    assert row["ok"], row
    # A control: the comparison sees a number that is off.
    column = next(name for name in made["numbers"] if name == "value")
    made["numbers"][column] = [None if v is None else v * 1.1 + 1 for v in made["numbers"][column]]
    assert not analyses.judged(made, analyses.stored(), key, "float32")["ok"]


def test_bfloat16_is_held_to_the_cpus_own_distance():
    known = analyses.stored()
    exact, own = (known[dtype]["patching.restore"] for dtype in ("float32", "bfloat16"))
    for one, good in ((own, True), (exact, True)):
        assert analyses.judged(one, known, "patching.restore", "bfloat16")["ok"] == good
    far = {**exact, "numbers": exact["numbers"] | {"value": [9.0] * len(exact["words"]["metric"])}}
    assert not analyses.judged(far, known, "patching.restore", "bfloat16")["ok"]

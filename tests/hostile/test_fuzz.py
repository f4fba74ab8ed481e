"""Two hundred cases of the fuzzer with a fixed seed; `make fuzz` runs ten thousand."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_hundreds_of_damaged_files_break_no_promise(tmp_path: Path):
    command = [sys.executable, "-m", "tests.hostile.fuzz", "--cases", "200", "--seed", "7"]
    done = subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True,
                          text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    counts = dict(re.findall(r"^(\w+) +(\d+) cases", done.stdout, re.M))
    assert len(counts) == 28
    assert sum(map(int, counts.values())) >= 190


def test_a_broken_promise_is_seen_and_its_case_is_kept(tmp_path: Path):
    """The watch itself: a reader that writes, connects, starts a program, hangs or runs code."""
    code = """
import os, socket, subprocess, sys, time
from pathlib import Path
from tests.hostile import guard
root = guard.scratch()
guard.SECONDS, guard.MEMORY = 1, 1 << 16
watch = guard.Guard(root)
marker = root / "MARKER"
def connect():
    try:
        socket.create_connection(("127.0.0.1", 9), timeout=1)
    except OSError:
        pass
acts = {
    "wrote": lambda: open(sys.argv[1], "w").close(),
    "socket.connect": connect,
    "subprocess.Popen": lambda: subprocess.run(["true"]),
    "still busy": lambda: time.sleep(5),
    "was run": lambda: marker.write_text(""),
    "KeyError": lambda: {}["x"],
    "grew by": lambda: bytearray(b"x" * (200 << 20)),
}
for says, act in acts.items():
    try:
        with watch.over(marker):
            act()
        print("missed", says)
    except guard.Violation as seen:
        print("seen" if says in str(seen) else f"other {seen}", says)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "elsewhere")], cwd=ROOT,
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 7
    assert [line for line in said if not line.startswith("seen")] == []


def less_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))


@pytest.mark.parametrize("kind", ["header", "adapter", "prompts", "result"])
def test_the_command_line_ends_in_one_sentence(kind: str, base: Path, tuned: Path, tmp_path: Path):
    if kind == "header":
        (tuned / "model.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
        command = ["check", base, tuned]
    elif kind == "adapter":
        (tuned / "model.safetensors").rename(tuned / "adapter_model.safetensors")
        (tuned / "adapter_config.json").write_text('{"peft_type": "LORA", "r": ' + "[" * 100_000)
        command = ["spectral", "spectrum", base, tuned]
    elif kind == "prompts":
        (tmp_path / "p.jsonl").write_bytes(b'{"prompt": "\x1b[2J\xff"}')
        command = ["tuco", base, tuned, "--prompts", tmp_path / "p.jsonl"]
    else:
        (tmp_path / "result.json").write_text('{"format": 1, "analysis": "\\u001b[2J"}')
        command = ["report", tmp_path]
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-m", "workbench.cli", *map(str, command)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, preexec_fn=less_memory,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("workbench: ")
    assert "\x1b" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before

"""What a unit's key covers: every byte that is read, told by content and not by a file's time."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file

import workbench as wb
from tests.conftest import adapter, nudged, saved, tiny
from tests.hostile.cases import TOKENIZER, TOKENIZER_CONFIG
from workbench.results import cache
from workbench.study import units
from workbench.study.compare import results
from workbench.study.study import Study
from workbench.tasks import Prompt, PromptSet, chat

UNREAD = ("README.md", "modeling_evil.py", "training_args.bin", "optimizer.pt", "picture.png")
FACTORS = "adapter_model.safetensors"
SIDES = ("base", "full", "lora")
TEXTS = ("a b c d", "b a d c", "a a b")


def speaking(folder: Path) -> Path:
    """A folder's model with a tokenizer, a chat template, and files that nobody reads."""
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({k: v for k, v in TOKENIZER_CONFIG.items() if k != "chat_template"})
    )
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("units")
    speaking(saved(tiny("llama"), home / "base"))
    speaking(saved(nudged(tiny("llama")), home / "full"))
    adapter(tiny("llama"), home / "lora")
    for side in SIDES:
        for name in UNREAD:
            (home / side / name).write_bytes(b"import nothing  # of this is read")
    return home


def key(home: Path, member: str) -> str:
    return units.Unit(wb.load_pair(home / "base", home / member), wb.spectral.intruders, {}).key


def tensors(file: Path) -> dict[str, bytes] | None:
    """What a file of weights holds; None where it is none."""
    try:
        return {name: one.numpy().tobytes() for name, one in load_file(file).items()}
    except SafetensorError:
        return None


def files(home: Path) -> list[Path]:
    return sorted(file.relative_to(home) for file in home.rglob("*") if file.is_file())


@given(data=st.data())
def test_any_byte_of_any_file_that_is_read_changes_the_key(home: Path, data):
    """Written in place, with size and time of writing put back. That the others are not read is
    what the next test proves."""
    place = data.draw(st.sampled_from(files(home)), label="file")
    member = "lora" if place.parts[0] == "lora" else "full"
    file, before = home / place, key(home, member)
    whole, stat = file.read_bytes(), file.stat()
    held = tensors(file) if place.name == FACTORS else None
    at = data.draw(st.integers(0, len(whole) - 1), label="byte")
    try:
        with file.open("r+b") as opened:
            opened.seek(at)
            opened.write(bytes([whole[at] ^ 1]))
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
        try:
            after = key(home, member)
        except wb.WorkbenchError:
            after = "refused"
        # Adapters are told apart by their tensors: what else their header says, nobody is told.
        alike = place.name == FACTORS and tensors(file) == held
        assert (after == before) == (place.name in UNREAD or alike)
    finally:
        file.write_bytes(whole)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert key(home, member) == before


@pytest.mark.parametrize("member", ["full", "lora"])
def test_what_the_key_leaves_out_is_never_opened(member: str, home: Path, tmp_path: Path):
    """A pipe without a writer in its place: who opened it would wait for ever."""
    piped = Path(shutil.copytree(home, tmp_path / "piped"))
    for file in [piped / side / name for side in ("base", member) for name in UNREAD]:
        file.unlink()
        os.mkfifo(file)
    tables = []
    for place in (home, piped):
        pair = wb.load_pair(place / "base", place / member)
        assert pair.check(run=True).ok
        words = pair.base.tokenizer()
        assert chat(PromptSet("p", (Prompt("1", "a b", " c"),)), words)[0].prompt == "a b"
        tables.append(wb.forgetting.retention(pair, texts=list(TEXTS)).table)
    pd.testing.assert_frame_equal(*tables)


def retained(home: Path, out: Path) -> pd.DataFrame:
    study = Study(
        wb.load_family(home / "base", {"full": home / "full"}),
        texts=list(TEXTS),
        only=("forgetting.retention",),
    )
    return next(one for one in results(study, out) if one.analysis == "forgetting.retention").table


def test_another_tokenizer_and_other_settings_give_no_old_numbers(home: Path, tmp_path: Path):
    changed = Path(shutil.copytree(home, tmp_path / "family"))
    before = retained(changed, tmp_path / "out")
    words = TOKENIZER["model"]["vocab"]
    swapped = words | {"a": words["z"], "z": words["a"]}
    (changed / "base" / "tokenizer.json").write_text(
        json.dumps(TOKENIZER | {"model": TOKENIZER["model"] | {"vocab": swapped}})
    )
    after = retained(changed, tmp_path / "out")
    assert not after.equals(before)
    pd.testing.assert_frame_equal(after, retained(changed, tmp_path / "fresh"))
    keys = {key(changed, "full")}
    for name, content in (("generation_config.json", {"top_k": 3}), ("chat_template.jinja", "x")):
        (changed / "base" / name).write_text(json.dumps(content))
        keys.add(key(changed, "full"))
    assert len(keys) == 3


def test_a_parameter_that_names_a_checkpoint_counts_by_its_content(home: Path, tmp_path: Path):
    never = Path(shutil.copytree(home / "full", tmp_path / "never"))
    pair = wb.load_pair(home / "base", home / "full")
    asked = [str(never), never, wb.Checkpoint.parse(never), [wb.load_pair(home / "base", never)]]

    def keys() -> list[str]:
        given = [wb.Checkpoint.parse(never) if isinstance(v, wb.Checkpoint) else v for v in asked]
        given[3] = [wb.load_pair(home / "base", never)]
        return [units.Unit(pair, wb.forgetting.revive, {"never": one}).key for one in given]

    before = keys()
    assert keys() == before
    saved(nudged(tiny("llama"), 0.5), never)
    assert not set(keys()) & set(before)


def test_large_files_are_read_once_and_again_when_they_were_written(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(cache, "SMALL", 10)
    file = tmp_path / "large"
    file.write_bytes(b"a" * 100)
    first, stat = cache.file_digest(file), file.stat()
    monkeypatch.setattr(cache, "digest", _once(cache.digest, {b"a" * 100}))
    assert cache.file_digest(file) == first
    with file.open("r+b") as opened:
        opened.write(b"b")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cache.file_digest(file) != first


def _once(digest, read: set[bytes]):
    """`digest` that raises for content that was read before."""

    def watched(chunks) -> str:
        chunks = [bytes(chunk) for chunk in chunks]
        assert not read & {*chunks}, "read again"
        return digest(chunks)

    return watched

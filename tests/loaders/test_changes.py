"""The one pass over both sides, against float64 numbers taken from the definition."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import workbench as wb
from tests.conftest import adapter, nudged, saved, tiny
from workbench.loaders import CheckpointPair, changes
from workbench.loaders.changes import measured
from workbench.loaders.memory_map import Following, Hashing, Mapped
from workbench.results import cache

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
SMALL_BLOCKS = {"BLOCK": 8, "PART": 24, "STRETCH": 100}  # so that a small tensor has many edges
SLOW_FIXTURES = [HealthCheck.function_scoped_fixture]


@pytest.fixture(params=["as they are", "small blocks"])
def blocks(request, monkeypatch):
    if request.param == "small blocks":
        for name, size in SMALL_BLOCKS.items():
            monkeypatch.setattr(changes, name, size)


def stored(folder: Path, tensors: dict[str, Tensor]) -> Path:
    """A checkpoint of these tensors and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return folder


def pair_of(folder: Path, base: dict[str, Tensor], tuned: dict[str, Tensor]) -> CheckpointPair:
    return wb.load_pair(stored(folder / "base", base), stored(folder / "tuned", tuned))


def one(folder: Path, base: Tensor, tuned: Tensor) -> changes.Change:
    (found,) = measured(pair_of(folder, {"weight": base}, {"weight": tuned}))
    return found


def norm(tensor: Tensor) -> float:
    return float(np.linalg.norm(tensor.double().numpy().ravel()))


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW_FIXTURES)
@given(
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    shapes=st.lists(
        st.one_of(
            st.tuples(st.integers(1, 60)),
            st.tuples(st.integers(1, 9), st.integers(1, 30)),
            st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5)),
        ),
        min_size=1,
        max_size=5,
    ),
    sizes=st.tuples(st.integers(1, 20), st.integers(1, 4), st.integers(1, 400)),
    seed=st.integers(0, 1000),
)
def test_norms_are_those_of_the_definition(dtypes, shapes, sizes, seed, tmp_path_factory):
    """Whatever the dtypes, and wherever blocks, parts and stretches end."""
    generator = torch.Generator().manual_seed(seed)
    sides = [
        {
            f"layers.{i}.w": torch.randn(s, generator=generator).to(dtype)
            for i, s in enumerate(shapes)
        }
        for dtype in dtypes
    ]
    block, many, stretch = sizes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(changes, "BLOCK", block)
        patch.setattr(changes, "PART", many * block)
        patch.setattr(changes, "STRETCH", stretch)
        found = measured(pair_of(tmp_path_factory.mktemp("p"), *sides))
    assert [change.site.name for change in found] == list(sides[0])
    for change in found:
        base, tuned = (side[change.site.name] for side in sides)
        assert not change.problem
        assert change.base == pytest.approx(norm(base), rel=1e-6)
        assert change.norm == pytest.approx(norm(tuned.double() - base.double()), rel=1e-6)


@settings(max_examples=40, deadline=None, suppress_health_check=SLOW_FIXTURES)
@given(
    dtype=st.sampled_from(DTYPES),
    places=st.sets(st.integers(0, 99), min_size=1, max_size=3),
    bad=st.sampled_from([math.nan, math.inf, -math.inf]),
    side=st.sampled_from(["base", "tuned"]),
)
def test_nan_or_inf_is_found_and_counted_in_any_block(dtype, places, bad, side, tmp_path_factory):
    sides = {
        name: {"layers.0.w": torch.ones(100, dtype=dtype), "layers.1.w": torch.ones(7, dtype=dtype)}
        for name in ("base", "tuned")
    }
    sides[side]["layers.0.w"][sorted(places)] = bad
    with pytest.MonkeyPatch.context() as patch:
        for name, size in SMALL_BLOCKS.items():
            patch.setattr(changes, name, size)
        pair = pair_of(tmp_path_factory.mktemp("p"), sides["base"], sides["tuned"])
        report = pair.check()
    (said,) = report.table.query("item == 'finite'")["found"]
    name = getattr(pair, side).name
    assert said.startswith(f"layers.0.w of {name} has {len(places)} NaN or inf of 100 entries")
    assert report.changes is not None
    assert list(report.changes["name"]) == ["layers.1.w"]
    with pytest.raises(wb.WorkbenchError, match=f"{len(places)} NaN or inf of 100"):
        list(pair.deltas("all"))


def test_inf_of_both_signs_on_both_sides_is_found(tmp_path: Path):
    """Neither sums nor differences may cancel it."""
    spoilt = torch.tensor([math.inf, -math.inf, 1.0])
    assert "has 2 NaN or inf" in one(tmp_path, spoilt, spoilt.clone()).problem


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_side_against_itself_is_the_exact_null(dtype, blocks, tmp_path: Path):
    weights = torch.randn(13, 11).to(dtype)
    assert one(tmp_path, weights, weights.clone()).norm == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [0, 7, 8, 23, 24, 142])
def test_one_changed_entry_is_the_whole_change(dtype, place, blocks, tmp_path: Path):
    weights = torch.ones(13, 11, dtype=dtype)
    tuned = weights.clone()
    tuned.view(-1)[place] = 1.5
    found = one(tmp_path, weights, tuned)
    assert (found.norm, found.base) == (0.5, pytest.approx(math.sqrt(143)))


def test_zeros_of_another_sign_are_no_change(blocks, tmp_path: Path):
    found = one(tmp_path, torch.zeros(50), -torch.zeros(50))
    assert (found.norm, found.base) == (0, 0)


@pytest.mark.parametrize(
    ("dtype", "base", "tuned"),
    [
        (torch.float16, 65504.0, -65504.0),  # the difference is no float16
        (torch.bfloat16, 2e38, -2e38),  # the difference is no float32
        (torch.float32, 3e25, 1e25),  # the squares are no float32
        (torch.float32, 3e-30, 1e-30),  # the squares are zero in float32
        (torch.bfloat16, 0.0, 1e-38),
        (torch.float32, 0.0, 2**-149),  # the smallest number there is
        (torch.float32, 1.0, 1.0 + 2**-23),
    ],
)
def test_large_and_small_numbers_keep_their_norms(dtype, base, tuned, blocks, tmp_path: Path):
    ours, theirs = (torch.full((70,), x, dtype=dtype) for x in (base, tuned))
    found = one(tmp_path, ours, theirs)
    assert not found.problem
    assert found.base == pytest.approx(norm(ours), rel=1e-6)
    assert found.norm == pytest.approx(norm(theirs.double() - ours.double()), rel=1e-6)


def test_data_at_any_byte_are_read(tmp_path: Path):
    """A header may let a float32 tensor begin where no float32 is aligned."""
    values = torch.randn(40)
    for side in ("base", "tuned"):
        header = {
            "flags": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
            "weight": {"dtype": "F32", "shape": [40], "data_offsets": [3, 163]},
        }
        text = json.dumps(header).encode()
        content = len(text).to_bytes(8, "little") + text + b"abc" + values.numpy().tobytes()
        (tmp_path / side).mkdir()
        (tmp_path / side / "model.safetensors").write_bytes(content)
        values = values + 1
    (found,) = measured(wb.load_pair(tmp_path / "base", tmp_path / "tuned"))
    assert found.norm == pytest.approx(math.sqrt(40), rel=1e-6)


def members(folder: Path) -> dict[str, CheckpointPair]:
    """Pairs of every kind that is read in a way of its own."""
    base = saved(tiny("llama"), folder / "base")
    model = nudged(tiny("llama"))
    tuned = saved(model, folder / "tuned")
    binary = folder / "binary"
    binary.mkdir()
    (binary / "config.json").write_text((base / "config.json").read_text())
    torch.save(model.state_dict(), binary / "pytorch_model.bin")
    model.save_pretrained(folder / "shards", max_shard_size="20KB")
    kinds = {"lora": {}, "dora": {"use_dora": True}, "saved": {"modules_to_save": ["lm_head"]}}
    adapters = {
        name: adapter(tiny("llama"), folder / name, **options) for name, options in kinds.items()
    }
    embedding = adapter(
        tiny("tied"), folder / "embedding", target_modules=["embed_tokens", "q_proj"]
    )
    gpt2 = saved(tiny("gpt2"), folder / "gpt2")
    conv = adapter(tiny("gpt2"), folder / "conv", target_modules=["c_attn"], fan_in_fan_out=True)
    given = {
        "full": (base, tuned),
        "bfloat16": (base, saved(nudged(tiny("llama")).bfloat16(), folder / "bfloat16")),
        "binary": (base, binary),
        "shards": (folder / "shards", base),
        "memory": (tiny("llama"), nudged(tiny("llama"))),
        "tied": (saved(tiny("tied"), folder / "t"), saved(nudged(tiny("tied")), folder / "t2")),
        "gpt2": (gpt2, saved(nudged(tiny("gpt2")), folder / "gpt2-tuned")),
        "conv": (gpt2, conv),
        "embedding": (saved(tiny("tied"), folder / "tied"), embedding),
        "dora embedding": (
            base,
            adapter(
                tiny("llama"),
                folder / "dora-embedding",
                use_dora=True,
                target_modules=["embed_tokens"],
            ),
        ),
        "other base": (base, f"{tuned}+{adapters['lora']}"),
        "dora on another base": (base, f"{tuned}+{adapters['dora']}"),
        **{name: (base, place) for name, place in adapters.items()},
    }
    return {name: wb.load_pair(*sides) for name, sides in given.items()}  # fmt: skip


def test_every_kind_of_member_gives_the_norms_of_its_deltas(blocks, tmp_path: Path):
    for kind, pair in members(tmp_path).items():
        found = measured(pair)
        assert [change.site for change in found] == pair.sites("all"), kind
        for change in found:
            delta = pair.delta(change.site)
            assert not change.problem, kind
            assert change.base == pytest.approx(norm(delta.base), rel=1e-6), kind
            expected = norm(delta.tuned.double() - delta.base.double())
            # What is formed in float32 has float32's rounding, relative to the base.
            near = {"rel": 1e-4, "abs": 1e-6 * change.base}
            assert change.norm == pytest.approx(expected, **near), (kind, change.site.name)
            assert (change.norm > 0) == (expected > 0), kind


def test_the_number_of_threads_changes_no_number(base: Path, tuned: Path, monkeypatch):
    found, before = [], torch.get_num_threads()
    for threads in (1, 3):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, n=threads: set(range(n)))
        found.append(measured(wb.load_pair(base, tuned)))
        assert torch.get_num_threads() == before
    assert found[0] == found[1]


def emptied(monkeypatch, folder: Path) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(folder))


def test_fingerprints_are_left_by_the_pass(blocks, tmp_path: Path, monkeypatch):
    """The same ones as of a checkpoint that was never compared, without a second reading."""
    tiny("llama").save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    tuned = saved(nudged(tiny("llama")), tmp_path / "tuned")
    folders = (tmp_path / "shards", tuned)
    emptied(monkeypatch, tmp_path / "one")
    expected = [wb.Checkpoint.parse(folder).fingerprint for folder in folders]
    emptied(monkeypatch, tmp_path / "two")
    wb.load_pair(*folders).check(fingerprints=True)
    for file in [file for folder in folders for file in folder.glob("*.safetensors")]:
        kept = cache.kept_digest(cache.digest_memo(file))
        assert kept == hashlib.sha256(file.read_bytes()).hexdigest()
    assert [wb.Checkpoint.parse(folder).fingerprint for folder in folders] == expected


@pytest.mark.parametrize("place", [None, 0, 1, 1999, 2000, 3500, 3999])
def test_hashes_are_right_wherever_two_sides_part(place, tmp_path: Path, monkeypatch):
    """As long as both have the same bytes one hash serves both, over ends of files too."""
    monkeypatch.setattr("workbench.loaders.memory_map.MIB", 64)
    emptied(monkeypatch, tmp_path / "cache")
    content = [bytearray(np.random.default_rng(0).bytes(4000)) for _ in range(2)]
    if place is not None:
        content[1][place] ^= 1
    files = [[tmp_path / f"{side}{i}" for i in range(2)] for side in "ab"]
    for side, data in zip(files, content, strict=True):
        for i, file in enumerate(side):
            file.write_bytes(data[2000 * i : 2000 * (i + 1)])
    leader = Hashing([Mapped(file) for file in files[0]])
    follower = Following([Mapped(file) for file in files[1]], leader)
    for share in (0.1, 0.45, 0.5, 0.9, 1.0):
        for one in (follower, leader):
            one.advance(share)
        for one in (leader, follower):
            one.settle()
    for file in [file for side in files for file in side]:
        kept = cache.kept_digest(cache.digest_memo(file))
        assert kept == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_file_written_while_it_is_hashed_is_not_remembered(tuned: Path):
    file = tuned / "model.safetensors"
    mapped = Mapped(file)
    file.write_bytes(file.read_bytes() + b"more")
    Hashing([mapped]).advance(1)
    assert cache.kept_digest(cache.digest_memo(file)) is None


def test_a_cache_that_cannot_be_written_stops_no_preflight(
    base: Path, tuned: Path, tmp_path: Path, monkeypatch
):
    (tmp_path / "file").write_text("")
    emptied(monkeypatch, tmp_path / "file" / "cache")
    assert wb.load_pair(base, tuned).check().ok


def test_the_most_changed_parameter_has_a_finite_relative_norm(tmp_path: Path):
    base = {"a.0.w": torch.ones(4), "a.1.w": torch.zeros(4), "a.2.w": torch.zeros(4)}
    tuned = {"a.0.w": torch.full((4,), 1.5), "a.1.w": torch.zeros(4), "a.2.w": torch.ones(4)}
    report = pair_of(tmp_path, base, tuned).check()
    said = report.table["found"].iloc[-1]
    assert said == "2 of 3 parameters changed, a.0.w most (relative norm 0.5)"
    only = pair_of(tmp_path / "zeros", {"a.1.w": base["a.2.w"]}, {"a.1.w": tuned["a.2.w"]})
    assert "a.1.w most (norm 2, where the base has zeros)" in only.check().table["found"].iloc[-1]


def holes(folder: Path, side: int) -> Path:
    """A checkpoint of one bfloat16 matrix of `side` rows and columns that no disk could hold."""
    folder.mkdir()
    size = 2 * side * side
    about = {"dtype": "BF16", "shape": [side, side], "data_offsets": [0, size]}
    text = json.dumps({"model.layers.0.mlp.weight": about}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
    return folder


def test_loading_a_pair_reads_headers_only(tmp_path: Path):
    """Two terabytes a side would take a while."""
    pair = wb.load_pair(holes(tmp_path / "base", 1 << 20), holes(tmp_path / "tuned", 1 << 20))
    assert pair.check(read=False).ok
    assert [site.name for site in pair.sites()] == ["model.layers.0.mlp.weight"]


def test_loading_an_adapter_reads_headers_only(base: Path, lora: Path, monkeypatch):
    opened = []
    read = wb.Checkpoint.parse(base).weights().__class__.__getitem__
    monkeypatch.setattr(
        "workbench.loaders.weights.Weights.__getitem__",
        lambda self, name: opened.append(name) or read(self, name),
    )
    pair = wb.load_pair(base, lora)
    assert opened == []
    pair.check()
    assert opened != []


def test_an_analysis_of_matrices_reads_no_other_parameter(base: Path, tuned: Path):
    """A preflight that read them all would stop at this one."""
    name = "model.norm.weight"
    state = load_file(tuned / "model.safetensors")
    state[name].fill_(math.nan)
    save_file(state, tuned / "model.safetensors", metadata={"format": "pt"})
    pair = wb.load_pair(base, tuned)
    assert not pair.check().ok
    assert len(wb.spectral.intruders(pair, k=2).table)

"""Models spread over memory and disk give the numbers of models in one place."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import workbench as wb
from tests.conftest import adapter, nudged, saved, tiny
from workbench.lab import shipped
from workbench.loaders.devices import entry, offloaded
from workbench.models import edit
from workbench.models.edits import merged
from workbench.skills import localize
from workbench.tasks import PromptSet

FAMILY = Path(__file__).parents[2] / "data" / "family"
DISK = {"": "disk"}
MIXED = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"} | {
    "lm_head": "disk", **{f"model.layers.{n}": ("cpu", "disk")[n % 2] for n in range(6)}
}  # fmt: skip
PROMPTS = PromptSet("ledger", shipped.held_out(shipped.TASK, 24).prompts)
FEW = PromptSet("few", PROMPTS.prompts[:6])
BOXES = wb.tasks.boxes(4, seed=0, order="object first")  # of one length
TEXTS = ["Anna lives in Paris .", "The pet of Adam is a dog ."]


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> wb.Family:
    """A copy of three of the shipped family, which must not change."""
    made = tmp_path_factory.mktemp("family")
    for name in ("base", "full", "lora-r4"):
        ignored = shutil.ignore_patterns("stages", "steps")
        shutil.copytree(FAMILY / name, made / name, ignore=ignored)
    return wb.load_family(made / "base", {n: made / n for n in ("full", "lora-r4")})


@pytest.fixture(scope="module", autouse=True)
def _files_stay(family: wb.Family):
    folder = Path(str(family.base.reference)).parent
    files = [file for file in folder.rglob("*") if file.is_file()]
    before = {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    yield
    assert {f: hashlib.sha256(f.read_bytes()).hexdigest() for f in files} == before


@pytest.fixture(scope="module")
def plain() -> dict[str, wb.Result]:
    """What models in one place gave, by what was called."""
    return {}


def alike(
    call: Callable[..., wb.Result], device: Any, known: dict[str, wb.Result], key: str
) -> None:
    found = call(device=device)
    plain = known.get(key) or known.setdefault(key, call(device="cpu"))
    pd.testing.assert_frame_equal(found.table, plain.table, check_exact=True)
    assert found.provenance.device == str(device)


@pytest.mark.parametrize("where", [MIXED, DISK], ids=["mixed", "disk"])
@pytest.mark.parametrize("name", ["full", "lora-r4"])
def test_a_spread_model_is_the_model(family, name: str, where):
    ids = torch.arange(3, 20)[None]
    with family[name].models() as plain, family[name].models(where) as found:
        assert any(map(offloaded, found.tuned.modules()))
        assert found.changed == plain.changed
        for side in ("base", "tuned"):
            ours, theirs = (getattr(one, side)(ids).logits for one in (found, plain))
            assert torch.equal(ours, theirs)
        assert not torch.equal(found.base(ids).logits, found.tuned(ids).logits)


@pytest.mark.parametrize("name", ["full", "lora-r4"])
@pytest.mark.parametrize("analysis", ["retention", "tuco", "scaling", "cross_model", "grafts"])
def test_analyses_give_the_same_numbers(family, plain, name: str, analysis: str):
    pair = family[name]
    calls: dict[str, Callable[..., wb.Result]] = {
        "retention": lambda **at: wb.forgetting.retention(pair, [FEW], texts=TEXTS, **at),
        "tuco": lambda **at: wb.tuco.contribution(pair, {"ledger": FEW}, **at),
        "scaling": lambda **at: wb.tuco.scaling(pair, FEW, alphas=(0.0, 0.9), **at),
        "cross_model": lambda **at: wb.patching.cross_model(
            pair, FEW, sites=("resid_pre", "mlp_out"), controls=1, **at
        ),
        "grafts": lambda **at: localize(
            pair, PROMPTS, sparsity=0.1, arms=("movement", "random"), random=1, **at
        ),
    }
    alike(calls[analysis], MIXED, plain, f"{analysis} of {name}")


def test_parameters_are_restored_in_a_spread_model(family, plain):
    pair = family["full"]
    alike(lambda **at: wb.patching.restore(pair, FEW, **at), MIXED, plain, "restore")
    with pytest.raises(wb.WorkbenchError, match="merged on one device"):
        merged(family["lora-r4"], MIXED)


@pytest.mark.parametrize("where", [MIXED, DISK], ids=["mixed", "disk"])
@pytest.mark.parametrize("analysis", ["prune", "probe", "faithfulness", "generate", "edges"])
def test_what_reads_gradients_or_writes_texts_gives_the_same_numbers(
    family, plain, analysis: str, where
):
    """Relevance by the gradient of activations, a model of random weights beside, greedy texts, and
    edges, which read projections by themselves."""
    pair = family["full"]
    facts = PromptSet("facts", shipped.held_out("facts", 24).prompts)
    calls: dict[str, Callable[..., wb.Result]] = {
        "prune": lambda **at: wb.forgetting.prune(
            pair, FEW, PROMPTS, shares=(0.01, 0.1), random=1, **at
        ),
        "probe": lambda **at: wb.forgetting.probe(pair, facts, label="attribute", folds=2, **at),
        "faithfulness": lambda **at: wb.behaviour.faithfulness(
            pair, FEW, between=" .", filler=";", shares=(0.0, 1.0), **at
        ),
        "generate": lambda **at: wb.behaviour.generate(pair, n=3, length=5, rounds=2, **at),
        "edges": lambda **at: wb.patching.attribution(
            pair, BOXES, sites=("z",), edges=True, exact=1, **at
        ),
    }
    alike(calls[analysis], where, plain, analysis)


@pytest.mark.parametrize("where", [MIXED, DISK, "auto"], ids=["mixed", "disk", "auto"])
def test_what_trains_is_refused_on_a_spread_model(family, where):
    pair = family["full"]
    lessons = PromptSet("lessons", PROMPTS.prompts[6:])
    with pytest.raises(wb.WorkbenchError, match="trains copies of both sides, each on one device"):
        wb.forgetting.revive(pair, FEW, lessons, steps=(1,), runs=1, device=where)
    if where == "auto":
        return  # offloads nothing where there is room
    for arm in ("learned", "gradient"):
        with pytest.raises(wb.WorkbenchError, match="some of this model's are offloaded"):
            localize(pair, PROMPTS, sparsity=0.1, arms=(arm,), epochs=1, device=where)


def test_an_edit_of_a_spread_model_ends_with_its_block(family):
    pair, ids = family["full"], torch.arange(3, 20)[None]
    base, whole = pair.base.load(MIXED), pair.tuned.load("cpu")
    before = base(ids).logits
    with edit(pair).on(base) as edited:
        assert torch.equal(edited(ids).logits, whole(ids).logits)
    assert torch.equal(base(ids).logits, before)


def test_every_device_at_once_is_auto(family, plain):
    pair = family["full"]
    alike(lambda **at: wb.forgetting.retention(pair, [FEW], texts=TEXTS, **at), "auto", plain,
          "retention of full")  # fmt: skip
    assert entry({"a": "disk", "b": 1, "c": "cpu"}) == torch.device("cuda:1")


def test_another_dtype_is_the_same_spread(family):
    ids = torch.arange(3, 20)[None]
    plain, found = (family.base.load(where, torch.bfloat16) for where in ("cpu", MIXED))
    assert torch.equal(found(ids).logits, plain(ids).logits)


def test_what_cannot_be_spread_is_one_sentence(tmp_path: Path):
    base = saved(tiny("tied"), tmp_path / "base")
    saved(nudged(tiny("tied")), tmp_path / "full")
    dora = adapter(tiny("tied"), tmp_path / "dora", use_dora=True)
    with pytest.raises(wb.WorkbenchError, match="more than plain factors"):
        wb.load_pair(base, dora).tuned.load(DISK)
    pair = wb.load_pair(base, tmp_path / "full")
    with (
        pytest.raises(wb.WorkbenchError, match="tied to the head"),
        edit(pair).on(pair.base.load(DISK)),
    ):
        pass
    with pytest.raises(wb.WorkbenchError, match="on one device"), pair.models(DISK, base="disk"):
        pass

"""A phantom of a prefix has its norms, vector by vector, and none of its directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import workbench as wb
from tests.conftest import contents, logits
from tests.patching.conftest import model
from tests.patching.prefixes import drawn_prefix, prefixed
from workbench.errors import WorkbenchError
from workbench.lab.phantom import phantom, phantoms
from workbench.lab.prefixes import numbers_of, prefix_of, redrawn
from workbench.tasks import Prompt, PromptSet

COUNT = 3


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> wb.CheckpointPair:
    """Of two key-value heads for four."""
    own = model()
    return prefixed(tmp_path_factory.mktemp("prefix"), own, drawn_prefix(own, COUNT))


def numbers(pair: wb.CheckpointPair) -> torch.Tensor:
    own = prefix_of(pair)
    assert own is not None
    return numbers_of(own)


def test_keys_and_values_are_read_as_peft_gives_them_to_the_layers(pair: wb.CheckpointPair):
    assert torch.equal(numbers(pair), drawn_prefix(model(), COUNT))
    base = AutoModelForCausalLM.from_pretrained(str(pair.base.reference))
    made: Any = PeftModel.from_pretrained(base, str(pair.tuned.adapter))
    for layer, own in enumerate(made.get_prompt(1).layers):
        for part, there in enumerate((own.keys, own.values)):
            assert torch.equal(there[0], numbers(pair)[layer, part])


def test_a_phantom_is_a_prefix_of_the_same_norms_in_other_directions(pair, tmp_path: Path):
    before = contents(Path(pair.tuned.adapter))
    out = phantom(pair, tmp_path / "deep" / "phantom")
    made = wb.load_pair(str(pair.base.reference), out)
    own, drawn = numbers(pair), numbers(made)
    assert own.shape == drawn.shape == (3, 2, 2, COUNT, 8)
    torch.testing.assert_close(drawn.norm(dim=-1), own.norm(dim=-1), rtol=1e-5, atol=0)
    cosines = torch.cosine_similarity(own, drawn, dim=-1)  # mean square 1/8, of 36
    assert 0.03 < float(cosines.square().mean()) < 0.25
    assert contents(Path(pair.tuned.adapter)) == before
    by_peft = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(str(pair.base.reference)), out
    ).eval()
    torch.testing.assert_close(logits(made.tuned.load()), logits(by_peft))
    assert made.tuned.about["phantom"] == "spectrum"
    assert wb.Checkpoint.parse(out).base_fingerprint == pair.base.fingerprint
    told = json.loads((out / "phantom.json").read_text())
    assert told["changed"] == own[..., 0].numel()
    assert told["largest_deviation_of_a_norm"] < 1e-6


def test_a_seed_decides_and_what_is_zero_stays_zero():
    own = drawn_prefix(model(), COUNT)
    own[1, 0, 1, 2] = 0
    assert torch.equal(redrawn(own, 0), redrawn(own, 0))
    assert not torch.allclose(redrawn(own, 0), redrawn(own, 1))
    assert not redrawn(own, 0)[1, 0, 1, 2].any()
    halves = redrawn(own.half(), 0)
    assert halves.dtype == torch.float16
    torch.testing.assert_close(halves.float(), redrawn(own, 0), rtol=5e-3, atol=5e-3)


def test_layers_are_exchanged_whole(pair: wb.CheckpointPair, tmp_path: Path):
    out = phantom(pair, tmp_path / "phantom", keep="layers")
    own, moved = numbers(pair), numbers(wb.load_pair(str(pair.base.reference), out))
    taken = [next(i for i in range(3) if torch.equal(own[i], one)) for one in moved]
    assert sorted(taken) == [0, 1, 2]
    assert all(here != there for here, there in enumerate(taken))


def test_the_cache_holds_prefixes_on_their_base(pair, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    (one,) = phantoms(pair, 1).values()
    own = wb.CheckpointPair(pair.base, one, "phantom")
    torch.testing.assert_close(numbers(own).norm(dim=-1), numbers(pair).norm(dim=-1))


def test_what_has_no_phantom_is_refused(pair: wb.CheckpointPair, tmp_path: Path):
    base, adapter = Path(str(pair.base.reference)), Path(str(pair.tuned.adapter))
    texts = PromptSet("one", (Prompt("a", "x", " y"),))
    with pytest.raises(WorkbenchError, match=r"not told by a training\.json"):
        phantom(pair, tmp_path / "none", keep="recipe", texts=texts)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(model(), config).save_pretrained(str(tmp_path / "embeddings"))
    with pytest.raises(WorkbenchError, match="no change of weights to analyse"):
        phantom(wb.load_pair(base, tmp_path / "embeddings"), tmp_path / "none")
    told = json.loads((adapter / "adapter_config.json").read_text())
    bare = tmp_path / "bare"
    bare.mkdir()
    save_file(load_file(adapter / "adapter_model.safetensors"), bare / "adapter_model.safetensors")
    (bare / "adapter_config.json").write_text(
        json.dumps(told | dict.fromkeys(("num_layers", "token_dim")))
    )
    with pytest.raises(WorkbenchError, match="found None and 2"):
        phantom(wb.load_pair(base, bare), tmp_path / "none")
    assert not (tmp_path / "none").exists()

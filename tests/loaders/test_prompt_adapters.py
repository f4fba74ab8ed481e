"""Adapters of virtual tokens: what runs is peft's own model on the given tokens, what asks for
weights or places is told why there are none.

The oracle is PeftModelForCausalLM as trained and as read again, of which the logits of virtual
tokens are cut off here; and transformers' own model given the stored numbers by hand. An adapter of
virtual tokens that does nothing does not exist: the null is a base against itself, asserted where
the analyses are tested.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import (
    CartridgeConfig,
    CPTConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

import workbench as wb
from tests import calls
from tests.conftest import nudged, saved, tiny
from tests.loaders.test_adapter_kinds import VIRTUAL, reconfigured
from workbench.loaders import Checkpoint
from workbench.models import Layout, Site, capture, edit, nnsight, transformer_lens
from workbench.models.edits import merged
from workbench.tasks import Prompt, PromptSet
from workbench.tasks.transforms import many_shot

COUNT = 5
COMMON: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": COUNT}
MADE: dict[str, Any] = {
    "PROMPT_TUNING": lambda: PromptTuningConfig(**COMMON),
    "PREFIX_TUNING": lambda: PrefixTuningConfig(**COMMON),
    "P_TUNING": lambda: PromptEncoderConfig(encoder_hidden_size=9, **COMMON),
    "CPT": lambda: CPTConfig(task_type="CAUSAL_LM", cpt_token_ids=[3, 4, 5, 6, 7]),
    "CARTRIDGE": lambda: CartridgeConfig(**COMMON),
    # By what the vectors were made in training is not needed to run them.
    "PREFIX_TUNING projected": lambda: PrefixTuningConfig(
        prefix_projection=True, encoder_hidden_size=7, **COMMON
    ),
    "P_TUNING by an LSTM": lambda: PromptEncoderConfig(
        encoder_hidden_size=9, encoder_reparameterization_type="LSTM", **COMMON
    ),
}
# gpt2 has learned positions, and llama fewer keys than queries below.
ARCHITECTURES = ("llama", "grouped", "gpt2")
IN_LAYERS = ("PREFIX_TUNING", "CARTRIDGE", "PREFIX_TUNING projected")
IDS = torch.tensor([[3, 14, 5, 26, 7], [9, 8, 17, 6, 15]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])  # filled on the right, as batches are
CLOSE: dict[str, Any] = {"atol": 2e-6, "rtol": 0}  # of logits of size one


def base_model(architecture: str) -> Any:
    if architecture != "grouped":
        return tiny(architecture).eval()
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    config = tiny("llama").config
    config.num_key_value_heads = 2
    return LlamaForCausalLM(config).eval()


def trained(kind: str, model: Any) -> Any:
    """peft's model, all that training would move moved at random."""
    torch.manual_seed(3)
    made = get_peft_model(model, MADE[kind]())
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made.eval()


def adapter_of(kind: str, model: Any, folder: Path) -> Path:
    trained(kind, model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {name: saved(base_model(name), root / name) for name in ARCHITECTURES}


def of_texts(model: Any, ids: Tensor, **more: Any) -> Tensor:
    """Logits of the given tokens, whatever stands in front of them."""
    with torch.no_grad():
        return model(input_ids=ids, **more).logits[:, -ids.shape[1] :]


def test_every_kind_of_virtual_tokens_is_asked():
    assert {kind.partition(" ")[0] for kind in MADE} == set(VIRTUAL)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", MADE)
def test_the_given_tokens_have_the_logits_of_peft(
    kind: str, architecture: str, folders: dict[str, Path], tmp_path: Path
):
    made = trained(kind, base_model(architecture))
    made.save_pretrained(tmp_path / "a")
    alone = PeftModel.from_pretrained(base_model(architecture), str(tmp_path / "a")).eval()
    untouched = base_model(architecture)
    with wb.load_pair(folders[architecture], tmp_path / "a").models() as sides:
        for mask in (None, MASK):
            found = of_texts(sides.tuned, IDS, attention_mask=mask)
            assert sides.tuned(input_ids=IDS).logits.shape == (2, 5, 50)
            assert torch.equal(found, of_texts(alone, IDS, attention_mask=mask))
            torch.testing.assert_close(found, of_texts(made, IDS, attention_mask=mask), **CLOSE)
            base = of_texts(sides.base, IDS, attention_mask=mask)
            assert torch.equal(base, of_texts(untouched, IDS, attention_mask=mask))
            assert float((found - base).abs().max()) > 0.05
        # Filled or not, together or alone.
        short = of_texts(sides.tuned, IDS[1:, :3])
        torch.testing.assert_close(found[1:, :3], short, **CLOSE)
        own = {p.data_ptr() for p in sides.base.parameters()}
        held = {p.data_ptr() for p in sides.tuned.parameters()}
        assert own < held  # one copy of the weights, and the prompt


@pytest.mark.parametrize("kind", MADE)
def test_half_precision_is_that_of_peft(kind: str, folders: dict[str, Path], tmp_path: Path):
    adapter = adapter_of(kind, base_model("llama"), tmp_path / "a")
    # Not cast by hand, which would round the positions' frequencies too.
    half = AutoModelForCausalLM.from_pretrained(folders["llama"], dtype=torch.bfloat16)
    alone = PeftModel.from_pretrained(half, str(adapter)).eval()
    with wb.load_pair(folders["llama"], adapter).models(dtype=torch.bfloat16) as sides:
        found = of_texts(sides.tuned, IDS, attention_mask=MASK)
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, of_texts(alone, IDS, attention_mask=MASK))


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "P_TUNING", "CPT"])
def test_embeddings_in_front_are_those_stored(kind: str, folders: dict[str, Path], tmp_path: Path):
    adapter, model = adapter_of(kind, base_model("gpt2"), tmp_path / "a"), base_model("gpt2")
    stored = load_file(adapter / "adapter_model.safetensors")["prompt_embeddings"]
    assert stored.shape == (COUNT, 32)
    words = model.get_input_embeddings()(IDS).detach()
    with torch.no_grad():
        whole = model(inputs_embeds=torch.cat([stored.expand(2, -1, -1), words], dim=1)).logits
    found = of_texts(wb.load_pair(folders["gpt2"], adapter).tuned.load(), IDS)
    torch.testing.assert_close(found, whole[:, COUNT:], **CLOSE)


@pytest.mark.parametrize("kind", IN_LAYERS)
def test_keys_and_values_in_front_are_those_stored(
    kind: str, folders: dict[str, Path], tmp_path: Path
):
    adapter, model = adapter_of(kind, base_model("grouped"), tmp_path / "a"), base_model("grouped")
    stored = load_file(adapter / "adapter_model.safetensors")["prompt_embeddings"]
    # Two layers, keys and values in turn, of two heads of eight.
    parts = stored.reshape(COUNT, 2, 2, 2, 8).permute(1, 2, 3, 0, 4)
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(parts):
        cache.update(keys.expand(2, -1, -1, -1), values.expand(2, -1, -1, -1), layer)
    with torch.no_grad():
        whole = model(input_ids=IDS, past_key_values=cache).logits
    found = of_texts(wb.load_pair(folders["grouped"], adapter).tuned.load(), IDS)
    torch.testing.assert_close(found, whole, **CLOSE)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", MADE)
def test_texts_are_written_as_peft_reads_them(
    kind: str, architecture: str, folders: dict[str, Path], tmp_path: Path
):
    """Token by token without a cache, with one, and by generate; the base is as it was."""
    adapter = adapter_of(kind, base_model(architecture), tmp_path / "a")
    alone = PeftModel.from_pretrained(base_model(architecture), str(adapter)).eval()
    wanted = IDS
    for _ in range(6):
        said = of_texts(alone, wanted)[:, -1].argmax(-1)
        wanted = torch.cat([wanted, said[:, None]], dim=1)
    how: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    with wb.load_pair(folders[architecture], adapter).models() as sides, torch.no_grad():
        before = of_texts(sides.base, IDS)
        full, steps, cache = of_texts(sides.tuned, wanted), [], None
        for first, last in ((0, 5), (5, 6), (6, 9), (9, 11)):
            seen = torch.ones(2, last, dtype=torch.long)
            out = sides.tuned(
                input_ids=wanted[:, first:last], past_key_values=cache, use_cache=True,
                attention_mask=seen if first != 5 else None,
            )  # fmt: skip
            cache = out.past_key_values
            steps.append(out.logits)
        torch.testing.assert_close(torch.cat(steps, dim=1), full, **CLOSE)
        for more in ({}, {"use_cache": False}, {"attention_mask": torch.ones_like(IDS)}):
            assert torch.equal(sides.tuned.generate(IDS, **how, **more), wanted)
        assert torch.equal(sides.tuned.generate(input_ids=IDS, **how), wanted)
        assert torch.equal(of_texts(sides.base, IDS), before)
        plain = base_model(architecture).generate(IDS, **how)
        assert torch.equal(sides.base.generate(IDS, **how), plain)


BEHAVED = ("PROMPT_TUNING", "PREFIX_TUNING")


class Family:
    """A base that reads the small world's words, an adapter on it, and plain models of both."""

    def __init__(self, kind: str, root: Path) -> None:
        calls.write_pair(root)
        self.base = AutoModelForCausalLM.from_pretrained(root / "base").eval()
        own = AutoModelForCausalLM.from_pretrained(root / "base")
        adapter_of(kind, own, root / "a")
        again = AutoModelForCausalLM.from_pretrained(root / "base")
        self.tuned = PeftModel.from_pretrained(again, str(root / "a")).eval()
        self.pair = wb.load_pair(root / "base", root / "a")
        self.words = self.pair.base.tokenizer()

    def read(self, model: Any, text: str) -> tuple[list[int], np.ndarray]:
        """(ids, log-probabilities (ids, vocabulary) of what follows each), float64."""
        ids = self.words(text)["input_ids"]
        found = of_texts(model, torch.tensor([ids]))[0].double()
        return ids, found.log_softmax(-1).numpy()

    def answer(self, model: Any, prompt: str) -> int:
        return int(self.read(model, prompt)[1][-1].argmax())

    def asked(self) -> PromptSet:
        """Questions that one side or the other answers right, in turn, in one token."""
        made = []
        for i, one in enumerate(calls.Asked(10).prompts):
            said = self.answer((self.base, self.tuned)[i % 2], one.prompt)
            made.append(Prompt(str(i), one.prompt, f" {self.words.decode([said])}"))
        return PromptSet("turns", tuple(made))


@pytest.fixture(scope="module", params=BEHAVED)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp("family"))


def test_tokens_are_those_of_plain_models(family: Family):
    texts = calls.Asked(5).texts
    found = wb.behaviour.tokens(family.pair, texts)
    wanted: dict[str, list[float]] = {"log_p": [], "delta": [], "kl": []}
    for text in texts:
        ids, base = family.read(family.base, text)
        _, tuned = family.read(family.tuned, text)
        at = np.arange(len(ids) - 1)
        wanted["log_p"] += list(base[at, ids[1:]])
        wanted["delta"] += list(tuned[at, ids[1:]] - base[at, ids[1:]])
        wanted["kl"] += list((np.exp(tuned) * (tuned - base)).sum(-1)[:-1])
    for name, values in wanted.items():
        np.testing.assert_allclose(found.tensors[name], values, atol=1e-5)
    assert np.abs(wanted["delta"]).mean() > 0.1
    once = wb.behaviour.tokens(family.pair, texts, batch_size=1)
    np.testing.assert_allclose(once.tensors["delta"], found.tensors["delta"], atol=1e-5)


def test_retention_is_that_of_plain_models(family: Family):
    asked, texts = family.asked(), calls.Asked(6).texts
    found = wb.forgetting.retention(family.pair, [asked], texts=texts).table
    right, losses = {}, {}
    for side, model in (("base", family.base), ("tuned", family.tuned)):
        said = [family.answer(model, one.prompt) for one in asked]
        own = [family.words(one.target)["input_ids"][-1] for one in asked]
        right[side] = float(np.mean(np.array(said) == np.array(own)))
        each = []
        for text in texts:
            ids, log_p = family.read(model, text)
            each += list(-log_p[np.arange(len(ids) - 1), ids[1:]])
        losses[side] = float(np.mean(each))
    assert 0 < right["base"] < 1
    assert 0 < right["tuned"] < 1
    rows = found.set_index(["task", "metric"])
    assert rows.loc[("turns", "score"), "value"] == pytest.approx(right["tuned"])
    assert rows.loc[("turns", "score"), "baseline"] == pytest.approx(right["base"])
    assert rows.loc[("pretraining", "loss"), "value"] == pytest.approx(losses["tuned"], abs=1e-5)
    assert rows.loc[("pretraining", "loss"), "baseline"] == pytest.approx(losses["base"], abs=1e-5)
    assert rows.loc[("pretraining", "kl"), "value"] > 0


def test_knowledge_is_that_of_plain_models(family: Family):
    asked, lessons = family.asked(), calls.Asked(4).lessons
    how: dict[str, Any] = {"count": 1, "between": " . ", "group": ()}
    found = wb.forgetting.knowledge(
        family.pair, asked, examples=lessons, sets=2, shots=1, between=" . "
    )
    table = found.metric("score")
    for arm, model, first in (("base", family.base, 0), ("tuned", family.tuned, 500)):
        right = []
        for i in range(2):
            shown = many_shot(asked, lessons, seed=first + i, **how)
            own = [family.words(one.target)["input_ids"][-1] for one in shown]
            right += [family.answer(model, p.prompt) == t for p, t in zip(shown, own, strict=True)]
        rows = table[table["arm"] == arm]
        mean = (rows["value"] * rows["n"]).sum() / rows["n"].sum()
        assert mean == pytest.approx(np.mean(right))


def test_written_texts_are_those_of_plain_models(family: Family):
    texts = [one.prompt for one in calls.Asked(4).prompts]
    found = wb.behaviour.generate(family.pair, texts, length=5, rounds=2).metric("text")
    assert set(found["arm"]) == {"base", "tuned", "contrast", "iterative"}
    for arm, model in (("base", family.base), ("tuned", family.tuned)):
        written = found[found["arm"] == arm]["text"]
        for text, own in zip(texts, written, strict=True):
            ids = family.words(text)["input_ids"]
            start = len(ids)
            while len(ids) < start + 5:
                said = int(of_texts(model, torch.tensor([ids]))[0, -1].argmax())
                if said == family.words.eos_token_id:
                    break
                ids = [*ids, said]
            assert own == family.words.decode(ids[start:])


# What only runs texts; of everything else of the catalogue the sentence is asked.
RUNS = (
    "behaviour.advantage", "behaviour.coverage", "behaviour.critical", "behaviour.faithfulness",
    "behaviour.generate", "behaviour.reliance", "behaviour.tokens", "forgetting.conjugate",
    "forgetting.kinds", "forgetting.knowledge", "forgetting.retention",
)  # fmt: skip


def refused(kind: str, count: int = COUNT) -> Any:
    told = (
        rf"an adapter of {kind}, which changes no weight and puts {count} virtual tokens in front"
    )
    return pytest.raises(wb.WorkbenchError, match=rf"{told}.*behaviour\.tokens")


@pytest.mark.parametrize("key", calls.CALLS)
def test_analyses_run_or_say_why_not(key: str, family: Family):
    asked = calls.Asked(4)
    if key in RUNS:
        assert len(calls.CALLS[key](family.pair, asked, batch_size=4).table)
        return
    # Asked of so few prompts that whatever looked at those first would speak of them.
    with refused("(prompt|prefix) tuning"):
        calls.CALLS[key](family.pair, asked, batch_size=4)


def test_emulation_with_the_small_base_as_the_large_model_is_the_tuned_one(family: Family):
    """log p + 1 (log p_tuned - log p) = log p_tuned, and with 0 the base."""
    large = str(family.pair.base.reference)
    found = wb.behaviour.emulate(family.pair, family.asked(), large, betas=(0.0, 1.0))
    losses = found.metric("loss").set_index(["arm", "x"])["value"]
    assert losses[("emulated", 1.0)] == pytest.approx(losses["tuned"].iloc[0], abs=1e-5)
    assert losses[("emulated", 0.0)] == pytest.approx(losses["base"].iloc[0], abs=1e-5)


def test_weights_places_and_bridges_are_refused_by_name(family: Family):
    pair = family.pair
    for call in (
        lambda: list(pair.deltas("all")),
        lambda: list(pair.held().deltas()),
        lambda: edit(pair, alpha=0.5),
        lambda: merged(pair),
        pair.to_transformer_lens,
        pair.to_nnsight,
    ):
        with refused("(prompt|prefix) tuning"):
            call()
    with pair.models() as sides:
        with refused("(prompt|prefix) tuning"):
            _ = sides.layout
        with refused("(prompt|prefix) tuning"), capture(sides.tuned, [Site("resid_post", 0)]):
            pass
        with refused("(prompt|prefix) tuning"):
            sides.tuned(input_ids=IDS, output_hidden_states=True)
        for hand_over in (transformer_lens.bridge, nnsight.wrap):
            with refused("(prompt|prefix) tuning"):
                hand_over(sides.tuned, family.words)
        assert Layout(sides.base).layers == 3


@pytest.mark.parametrize("kind", MADE)
def test_the_preflight_tells_what_it_is(kind: str, folders: dict[str, Path], tmp_path: Path):
    adapter = adapter_of(kind, base_model("llama"), tmp_path / "a")
    pair = wb.load_pair(folders["llama"], adapter)
    report = pair.check(run=True)
    table = report.table.set_index("item")
    assert report.ok
    assert report.changes is None
    assert table.loc["runs", "status"] == "ok"
    assert table.loc["adapter keys", "found"] == f"{COUNT} virtual tokens in front of a text"
    said = " ".join(pair.limits().notes)
    assert "changes no weight" in said
    assert "Analyses of weights or of places" in said
    assert pair.tuned.about["kind"] == kind.partition(" ")[0].lower()
    assert pair.tuned.fingerprint != pair.base.fingerprint


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a classifier": ({"task_type": "SEQ_CLS"}, "is for SEQ_CLS"),
    "an encoder and a decoder": (
        {"num_transformer_submodules": 2},
        "is for an encoder and a decoder",
    ),
    "a count of a billion": ({"num_virtual_tokens": 10**9}, "belongs to other weights"),
    "a width of a billion": ({"token_dim": 10**9}, "belongs to other weights"),
    "a word for a number": ({"token_dim": "wide"}, "whole numbers >= 1"),
    "layers in words": ({"num_layers": "two"}, "whole numbers >= 1"),
}


@pytest.mark.parametrize("which", WRONG)
@pytest.mark.parametrize("kind", BEHAVED)
def test_configs_of_other_weights_end_in_a_sentence(
    kind: str, which: str, folders: dict[str, Path], tmp_path: Path
):
    changes, says = WRONG[which]
    adapter = adapter_of(kind, base_model("llama"), tmp_path / "a")
    with pytest.raises(wb.WorkbenchError, match=says):
        wb.load_pair(folders["llama"], reconfigured(adapter, **changes))


def test_what_a_config_leads_to_is_not_read(folders: dict[str, Path], tmp_path: Path):
    """A prompt begun with a text names a tokenizer, anyone's, which running needs not."""
    adapter = adapter_of("PROMPT_TUNING", base_model("llama"), tmp_path / "a")
    wanted = of_texts(wb.load_pair(folders["llama"], adapter).tuned.load(), IDS)
    leads = {
        "prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "Say", "token_dim": None,
        "tokenizer_name_or_path": "nobody/nothing", "tokenizer_kwargs": {"trust_remote_code": True},
        "auto_mapping": {"base_model_class": "os", "parent_library": "os"},
    }  # fmt: skip
    pair = wb.load_pair(folders["llama"], reconfigured(adapter, **leads))
    assert torch.equal(of_texts(pair.tuned.load(), IDS), wanted)


def test_other_tensors_files_and_bases_end_in_a_sentence(folders: dict[str, Path], tmp_path: Path):
    adapter = adapter_of("PROMPT_TUNING", base_model("llama"), tmp_path / "a")
    other = saved(nudged(base_model("llama")), tmp_path / "other")
    reference = Checkpoint.parse(f"{other}+{adapter}")
    with (
        pytest.raises(wb.WorkbenchError, match="of another model than this base"),
        wb.load_pair(folders["llama"], reference).models(),
    ):
        pass
    with pytest.raises(wb.WorkbenchError, match="in memory with an adapter of prompt tuning"):
        wb.load_pair(folders["llama"], trained("PROMPT_TUNING", base_model("llama")))
    prompt = adapter_of("PROMPT_TUNING", base_model("llama"), tmp_path / "prompt")
    file = adapter / "adapter_model.safetensors"
    state = load_file(file)
    save_file({"prompt_embeddings": torch.zeros(COUNT, 16)}, file)
    narrow = reconfigured(adapter, token_dim=16)
    with pytest.raises(wb.WorkbenchError, match="of width 16, but the base has 32"):
        wb.load_pair(folders["llama"], narrow).tuned.load()
    save_file(state | {"base_model.model.lm_head.weight": torch.zeros(50, 32)}, file)
    with pytest.raises(wb.WorkbenchError, match=r"no other, but has base_model\.model\.lm_head"):
        wb.load_pair(folders["llama"], reconfigured(adapter, token_dim=32))
    pytest.importorskip("accelerate")
    with pytest.raises(wb.WorkbenchError, match="give one device"):
        wb.load_pair(folders["llama"], prompt).tuned.load({"model": "cpu", "lm_head": "disk"})
    prefix = adapter_of("PREFIX_TUNING", base_model("llama"), tmp_path / "prefix")
    stored = load_file(prefix / "adapter_model.safetensors")["prompt_embeddings"]
    save_file({"prompt_embeddings": torch.cat([stored, stored], 1)}, prefix / file.name)
    deeper = wb.load_pair(folders["llama"], reconfigured(prefix, num_layers=4))
    with pytest.raises(wb.WorkbenchError, match="of layers 4, but the base has 2"):
        deeper.tuned.load()
    file.unlink()
    torch.save(state, adapter / "adapter_model.bin")
    with pytest.raises(wb.WorkbenchError, match="prompts are only read from safetensors"):
        wb.load_pair(folders["llama"], adapter)


@pytest.mark.parametrize("kind", BEHAVED)
def test_a_text_that_has_no_room_behind_the_virtual_tokens_is_told(
    kind: str, folders: dict[str, Path], tmp_path: Path
):
    adapter = adapter_of(kind, base_model("gpt2"), tmp_path / "a")
    with wb.load_pair(folders["gpt2"], adapter).models() as sides, torch.no_grad():
        ids = torch.full((1, 32), 3)  # as many as the model has positions
        assert sides.base(input_ids=ids).logits.shape == (1, 32, 50)
        assert of_texts(sides.tuned, ids[:, : 32 - COUNT]).shape == (1, 32 - COUNT, 50)
        with pytest.raises(wb.WorkbenchError, match="more than the 32 positions"):
            sides.tuned(input_ids=ids[:, : 33 - COUNT])
        with pytest.raises(wb.WorkbenchError, match="more than the 32 positions"):
            sides.tuned.generate(ids[:, :20], max_new_tokens=8)

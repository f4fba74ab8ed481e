"""What runs is what was compared: the logits of transformers and peft, or a sentence."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, modeling_utils

import workbench as wb
from tests.conftest import IDS, adapter, logits, nudged, saved, tiny
from workbench.loaders import Checkpoint, run_check
from workbench.tasks.decoding import written

State = dict[str, Tensor]
LAST = "model.layers.1.mlp.up_proj.weight"


def run(checkpoint: str | Path | Checkpoint) -> Tensor:
    return logits(Checkpoint.parse(checkpoint).load(dtype=torch.float32))


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    """base, full (untied), lora; tied, tied-full."""
    home = tmp_path_factory.mktemp("originals")
    saved(tiny("llama"), home / "base")
    saved(nudged(tiny("llama")), home / "full")
    adapter(tiny("llama"), home / "lora")
    saved(tiny("tied"), home / "tied")
    saved(nudged(tiny("tied")), home / "tied-full")
    return home


@pytest.fixture(scope="module")
def truth(originals: Path) -> Mapping[str, Tensor]:
    """Of transformers and peft themselves."""
    plain = AutoModelForCausalLM.from_pretrained
    names = ("base", "full", "tied", "tied-full")
    found = {name: logits(plain(originals / name)) for name in names}
    put_on = PeftModel.from_pretrained(plain(originals / "base"), originals / "lora")
    return found | {"lora": logits(put_on.eval())}


def changed(source: Path, target: Path, change: Callable[[State], State], **config: object) -> Path:
    """A copy of a checkpoint or adapter with other tensors and config entries."""
    shutil.copytree(source, target)
    (file,) = target.glob("*.safetensors")
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    if config:
        place = target / "config.json"
        place.write_text(json.dumps(json.loads(place.read_text()) | config))
    return target


def before(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def renamed(pattern: str, by: str, state: State) -> State:
    return {re.sub(pattern, by, name): tensor for name, tensor in state.items()}


def without(pattern: str, state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not re.search(pattern, name)}


WRAPPED = {
    "compiled": lambda s: before("_orig_mod.", s),
    "layers compiled": lambda s: renamed(r"(layers\.\d+)", r"\1._orig_mod", s),
    "in parallel": lambda s: before("module.", s),
    "both": lambda s: before("module._orig_mod.", s),
    "sharded": lambda s: renamed(r"(layers\.\d+)", r"\1._fsdp_wrapped_module", s),
    "with a value head": lambda s: (
        before("pretrained_model.", s) | {"v_head.summary.weight": torch.ones(1, 32)}
    ),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_what_a_training_tool_puts_into_names_is_taken_off(kind: str, originals, truth, tmp_path):
    tuned = changed(originals / "full", tmp_path / "tuned", WRAPPED[kind])
    torch.testing.assert_close(run(tuned), truth["full"], atol=1e-5, rtol=0)
    pair = wb.load_pair(originals / "base", tuned)
    plain = wb.load_pair(originals / "base", originals / "full")
    ours, theirs = (
        {delta.site: delta.norm for delta in one.deltas("all")} for one in (pair, plain)
    )
    assert ours == theirs


BROKEN = {
    "one matrix missing": (lambda s: without(LAST, s), {}, "lacks model.layers.1.mlp.up_proj"),
    "no head": (lambda s: without("lm_head", s), {}, "no output head"),
    "from AutoModel": (
        lambda s: renamed("^model.", "", without("lm_head", s)), {}, "no output head",
    ),
    "a reward model": (
        lambda s: without("lm_head", s) | {"score.weight": torch.ones(1, 32)}, {}, "no output head",
    ),
    "a layer more": (
        lambda s: s | {LAST.replace("1", "2"): s[LAST].clone()}, {}, "has no place for",
    ),
    "a wider matrix": (lambda s: s | {LAST: torch.ones(50, 32)}, {}, r"\(50, 32\)"),
    "a layer less": (lambda s: s, {"num_hidden_layers": 1}, "has no place for"),
    "other names": (lambda s: renamed("mlp", "feed_forward", s), {}, "lacks"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_random_numbers_never_run(kind: str, originals, tmp_path):
    change, config, says = BROKEN[kind]
    tuned = changed(originals / "full", tmp_path / "tuned", change, **config)
    with pytest.raises(wb.WorkbenchError, match=says):
        run(tuned)


def test_an_adapter_runs_as_peft_runs_it(originals, truth):
    torch.testing.assert_close(
        run(f"{originals / 'base'}+{originals / 'lora'}"), truth["lora"], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda s: renamed(r"^base_model\.model\.model\.", "base_model.model.", s),
        lambda s: renamed(r"^base_model\.model\.", "base_model.model._orig_mod.", s),
        lambda s: renamed(r"mlp", "feed_forward", s),
        lambda s: renamed(r"layers\.1\.", "layers.7.", s),
    ],
    ids=["one model short", "compiled", "other modules", "another layer"],
)
def test_an_adapter_that_would_reach_nothing_is_run_right_or_not_at_all(
    change, originals, truth, tmp_path
):
    lora = changed(originals / "lora", tmp_path / "lora", change)
    try:
        found = run(f"{originals / 'base'}+{lora}")
    except wb.WorkbenchError:
        return
    torch.testing.assert_close(found, truth["lora"], atol=1e-5, rtol=0)


def test_a_head_of_its_own_runs_though_the_config_ties_it(originals, tmp_path):
    """transformers runs what is stored; so the head is a changed parameter."""
    head = torch.randn(50, 32)
    tuned = changed(originals / "tied", tmp_path / "tuned", lambda s: s | {"lm_head.weight": head})
    truth = logits(AutoModelForCausalLM.from_pretrained(tuned))
    torch.testing.assert_close(run(tuned), truth, atol=1e-5, rtol=0)
    assert "lm_head.weight" in Checkpoint.parse(tuned).weights()
    same = changed(
        originals / "tied", tmp_path / "same",
        lambda s: s | {"lm_head.weight": s["model.embed_tokens.weight"].clone()},
    )  # fmt: skip
    assert "lm_head.weight" not in Checkpoint.parse(same).weights()


def changes(pair: wb.CheckpointPair) -> dict[str, float]:
    return {d.site.name: d.norm for d in pair.deltas("all") if d.changed}


def test_a_head_that_one_side_ties_is_a_changed_parameter(originals, tmp_path):
    """Base tied, tuned with a head of its own, and the other way round: |head - embedding|."""
    embedding = load_file(originals / "tied" / "model.safetensors")["model.embed_tokens.weight"]
    head = torch.randn(50, 32, generator=torch.Generator().manual_seed(1))
    untied = changed(
        originals / "tied", tmp_path / "untied",
        lambda s: s | {"lm_head.weight": head}, tie_word_embeddings=False,
    )  # fmt: skip
    truth = {"lm_head.weight": float((head - embedding).double().norm())}
    there, back = wb.load_pair(originals / "tied", untied), wb.load_pair(untied, originals / "tied")
    assert changes(there) == pytest.approx(truth)
    assert changes(back) == pytest.approx(truth)
    spectrum = wb.spectral.delta_spectrum(there).table
    assert set(spectrum.loc[spectrum["metric"] == "norm", "component"]) >= {"lm_head"}
    table = there.check().table.set_index("item")
    assert "1 of" in table.loc["changes", "found"]
    with there.models(dtype=torch.float32) as sides:
        assert sides.elsewhere == ("lm_head.weight",)
        torch.testing.assert_close(logits(sides.tuned), run(untied), atol=1e-5, rtol=0)
    half = wb.models.edit(there, alpha=0.5)
    with half.on(Checkpoint.parse(originals / "tied").load()) as edited:
        hidden = edited.model(IDS).last_hidden_state
        torch.testing.assert_close(
            edited(IDS).logits, hidden @ ((head + embedding) / 2).T, atol=1e-5, rtol=0
        )


def test_lora_on_a_tied_head_is_seen(originals, tmp_path):
    lora = adapter(tiny("tied"), tmp_path / "lora", target_modules=["lm_head"])
    pair = wb.load_pair(originals / "tied", lora)
    (changed_,) = changes(pair)
    assert changed_ == "lm_head.weight"
    assert not any("BA = 0" in note for note in pair.check().notes)


NAMES = st.sampled_from(["model.", "mlp.", "layers.", "self_attn.", "lm_head.", "weight"])
CONFIGS = st.sampled_from(
    [{}, {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, {"hidden_act": "gelu"},
     {"num_hidden_layers": 1}, {"tie_word_embeddings": True}, {"rms_norm_eps": 0.1}]
)  # fmt: skip


def told_to_run(base: Path, tuned: Path) -> bool:
    """Whether the preflight says that both sides run."""
    try:
        table = wb.load_pair(base, tuned).check().table
    except wb.WorkbenchError:
        return False
    return table.loc[table["item"].eq("runs"), "status"].tolist() == ["ok"]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    old=NAMES, new=st.sampled_from(["", "module.", "_orig_mod.", "x.", "model.model."]),
    dropped=st.one_of(st.none(), st.integers(0, 20)), config=CONFIGS,
)  # fmt: skip
def test_whatever_is_renamed_or_dropped_the_truth_runs_or_nothing(
    old, new, dropped, config, originals, tmp_path_factory
):
    """The truth: transformers on the tensors under their own names, where it lacks none of them: a
    head that the config ties may be dropped."""
    home = tmp_path_factory.mktemp("drawn")

    def dropping(state: State) -> State:
        gone = list(state)[dropped] if dropped is not None else None
        return {name: tensor for name, tensor in state.items() if name != gone}

    def change(state: State) -> State:
        return {n.replace(old, new, 1): t for n, t in dropping(state).items()}

    tuned = changed(originals / "full", home / "tuned", change, **config)
    whole = changed(originals / "full", home / "whole", dropping, **config)
    try:
        found = run(tuned)
    except wb.WorkbenchError:
        assert not told_to_run(originals / "base", tuned)
        return
    # A config that makes another function of all weights is a pair that may be refused.
    assert told_to_run(originals / "base", tuned) or config
    truth, told = AutoModelForCausalLM.from_pretrained(whole, output_loading_info=True)
    assert not told["missing_keys"]
    torch.testing.assert_close(found, logits(truth), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_an_encoder_gives_no_next_token(kind: str, tmp_path: Path):
    folder = saved(tiny(kind), tmp_path / kind)
    pair = wb.load_pair(folder, saved(nudged(tiny(kind)), tmp_path / "tuned"))
    assert len(wb.spectral.delta_spectrum(pair).table)
    with pytest.raises(wb.WorkbenchError, match=r"is an encoder .* only analyses of the weights"):
        pair.base.load()


@pytest.mark.parametrize("first", ["bfloat16", "float32"])
def test_two_precisions_run_in_the_wider(first: str, originals, tmp_path: Path):
    """float32 on both sides: a difference between 16 and 32 bits is none of the change."""

    def halves(state: State) -> State:
        return {name: tensor.bfloat16() for name, tensor in state.items()}

    half = changed(originals / "full", tmp_path / "half", halves, dtype="bfloat16")
    sides = [half, originals / "base"] if first == "bfloat16" else [originals / "base", half]
    pair = wb.load_pair(*sides)
    with pair.models() as run_:
        running = (*run_.base.parameters(), *run_.tuned.parameters())
        assert {parameter.dtype for parameter in running} == {torch.float32}
        torch.testing.assert_close(logits(run_.tuned), run(sides[1]), atol=1e-5, rtol=0)


def runs(pair: wb.CheckpointPair, **options: bool) -> tuple[str, str]:
    table = pair.check(**options).table.set_index("item")
    return table.loc["runs", "status"], table.loc["runs", "found"]


def test_the_preflight_says_whether_both_sides_run(originals, tmp_path):
    good = wb.load_pair(originals / "base", originals / "lora")
    for options in ({}, {"run": True}):
        status, found = runs(good, **options)
        assert status == "ok"
        assert "their logits agree with those of transformers and peft" in found
    assert "runs" not in set(good.check(run=False).table["item"])
    assert "runs" not in set(good.check(read=False).table["item"])
    broken = changed(originals / "full", tmp_path / "broken", lambda s: without(LAST, s))
    status, found = runs(wb.load_pair(originals / "base", broken))
    assert status == "warn"
    assert "the tuned model cannot be run" in found
    assert LAST.removesuffix(".weight") in found


def test_another_model_than_a_plain_loading_gives_is_told(originals, monkeypatch):
    other = Checkpoint.parse(originals / "full").load()
    monkeypatch.setattr(run_check, "_plain", lambda checkpoint, whole: other)
    pair = wb.load_pair(originals / "base", originals / "lora")
    status, found = runs(pair, run=True)
    assert status == "warn"
    assert "from those of a plain loading" in found


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_wrapped_model_is_held_against_a_loading_that_is_told(kind, originals, tmp_path):
    tuned = changed(originals / "full", tmp_path / "tuned", WRAPPED[kind])
    assert runs(wb.load_pair(originals / "base", tuned))[0] == "ok"


KINDS = {
    "dora": {"use_dora": True},
    "dora on embeddings": {"use_dora": True, "target_modules": ["embed_tokens", "q_proj"]},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "patterns": {"rank_pattern": {"q_proj": 7}, "alpha_pattern": {"k_proj": 11}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_runs_as_peft_runs_it(kind: str, originals, tmp_path: Path):
    lora = adapter(tiny("llama"), tmp_path / "lora", **KINDS[kind])
    plain = AutoModelForCausalLM.from_pretrained(originals / "base")
    wanted = logits(PeftModel.from_pretrained(plain, lora).eval())
    found = run(f"{originals / 'base'}+{lora}")
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert runs(wb.load_pair(originals / "base", lora))[0] == "ok"


def test_a_model_is_proved_once(originals, tmp_path, monkeypatch):
    """And again once any number of it is another."""
    tuned = shutil.copytree(originals / "full", tmp_path / "tuned")
    pair = wb.load_pair(originals / "base", tuned)
    assert runs(pair)[0] == "ok"
    with monkeypatch.context() as patch:
        patch.setattr(run_check, "_plain", None)  # would be called
        assert runs(wb.load_pair(originals / "base", tuned))[0] == "ok"
        with pytest.raises(TypeError):
            pair.check(run=True)
        shutil.rmtree(tuned)
        changed(originals / "full", tuned, lambda s: s | {LAST: s[LAST] + 1e-3})
        with pytest.raises(TypeError):
            wb.load_pair(originals / "base", tuned).check()


def test_of_an_adapter_beside_whole_weights_it_is_said_which_is_read(originals, tmp_path):
    both = shutil.copytree(originals / "full", tmp_path / "both")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(originals / "lora" / file, both)
    pair = wb.load_pair(originals / "base", both)
    assert pair.tuned.lora is not None
    assert any("The adapter is used" in note for note in pair.check().notes)
    (both / "adapter_model.safetensors").unlink()
    whole = wb.load_pair(originals / "base", both)
    assert whole.tuned.lora is None
    assert changes(whole) == changes(wb.load_pair(originals / "base", originals / "full"))
    report = whole.check()
    assert any("The whole weights are compared" in note for note in report.notes)
    # transformers would run the adapter's base in its place.
    with pytest.raises(wb.WorkbenchError, match="move the adapter's files"):
        whole.tuned.load()


PACKED = {
    "float8": (torch.float8_e4m3fn, "stored as float8_e4m3fn"),
    "int8": (torch.int8, "stored as whole numbers"),
    "uint8": (torch.uint8, "stored as whole numbers"),
}


@pytest.mark.parametrize("form", ["bin", "safetensors"])
@pytest.mark.parametrize("kind", PACKED)
def test_packed_numbers_are_not_compared(kind: str, form: str, originals, tmp_path):
    dtype, says = PACKED[kind]
    tuned = shutil.copytree(originals / "full", tmp_path / "tuned")
    file = tuned / "model.safetensors"
    state = {n: t.to(dtype) if "proj" in n else t for n, t in load_file(file).items()}
    if form == "bin":
        file.unlink()
        torch.save(state, tuned / "pytorch_model.bin")
    else:
        save_file(state, file, metadata={"format": "pt"})
        says = says.replace("float8_e4m3fn", "F8_E4M3")
    with pytest.raises(wb.WorkbenchError, match=says):
        wb.load_pair(originals / "base", tuned)


def test_factors_of_another_tool_are_told(originals, tmp_path):
    own = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    (tmp_path / "kohya").mkdir()
    save_file(
        {f"{own}.lora_down.weight": torch.ones(2, 4), f"{own}.lora_up.weight": torch.ones(4, 2),
         f"{own}.alpha": torch.ones(())},
        tmp_path / "kohya" / "some.safetensors",
    )  # fmt: skip
    with pytest.raises(wb.WorkbenchError, match="holds only LoRA factors"):
        wb.load_pair(originals / "base", tmp_path / "kohya")


def test_an_adapter_of_a_classifier_is_compared_and_not_run(originals, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForSequenceClassification

    bare = tiny("llama")
    classifier = LlamaForSequenceClassification(bare.config)
    options = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False}
    made = get_peft_model(classifier, LoraConfig(task_type="SEQ_CLS", **options))
    made.save_pretrained(tmp_path / "lora")
    pair = wb.load_pair(originals / "base", tmp_path / "lora")
    assert len([delta for delta in pair.deltas() if delta.changed]) == 2
    report = pair.check()
    assert report.ok
    assert any("score.weight" in note for note in report.notes)
    with pytest.raises(wb.WorkbenchError, match=r"score.weight .* reaches no module"):
        pair.tuned.load()


def test_loading_and_writing_say_nothing_of_padding(tmp_path: Path, monkeypatch):
    """Of a model whose texts are filled up with 0, nothing is filled up: a warning of transformers
    would be about the workbench's own call."""
    made = tiny("gpt2")
    made.config.pad_token_id = 0
    said: list[str] = []
    monkeypatch.setattr(modeling_utils.logger, "warning_once", said.append)
    model = Checkpoint.parse(saved(made, tmp_path / "base")).load().eval()
    assert model.config.pad_token_id == 0
    assert [len(one) for one in written([model], [[0, 5, 0], [7, 5, 0]], 4)] == [4, 4]
    assert said == []
    with torch.no_grad():  # the control
        model(input_ids=torch.tensor([[0, 5, 0]]))
    assert len(said) == 1

"""TRL's trainers are Trainers: sixty steps of its SFTTrainer under watch, and their figures."""

from __future__ import annotations

from pathlib import Path

import workbench as wb
from tests.calls import Asked, write_pair
from workbench.integrations.transformers import Callback
from workbench.results import run_folder

ASKED = Asked(3)


def test_a_trl_run_gives_the_figures_over_its_steps(tmp_path: Path):
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    base, words = tmp_path / "base", write_pair(tmp_path).base.tokenizer()
    texts = [f"{one.prompt}{one.target}" for one in ASKED.prompts]
    settings = SFTConfig(
        str(tmp_path / "trainer"), max_steps=60, per_device_train_batch_size=2, report_to=[],
        use_cpu=True, bf16=False, save_strategy="no", learning_rate=1e-2, disable_tqdm=True,
        gradient_checkpointing=False,
    )  # fmt: skip
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(base), settings, processing_class=words,
        train_dataset=Dataset.from_dict({"text": texts}),
        peft_config=LoraConfig(r=2, target_modules="all-linear"),
    )  # fmt: skip
    watching = Callback(
        base, tmp_path / "out", prompts=ASKED.prompts, texts=ASKED.texts, every=20, budget=1e9,
    ).attach(trainer)  # fmt: skip
    trainer.train()
    assert watching.watch.overhead > 0
    kept = run_folder.load(tmp_path / "out")
    assert {key.removesuffix(".steps") for key in kept} == {*watching.watch.analyses}
    for result in kept.values():
        steps = [about["step"] for about in result.provenance.members.values()]
        assert steps == [20, 40, 60]
    drawn = wb.figures.save_all(kept, tmp_path / "figures", formats=("png",))
    print([p.name for p in drawn])
    norms = kept["spectral.delta_spectrum.steps"].metric("relative_norm")
    assert norms.groupby("member")["value"].mean().is_monotonic_increasing

"""What is the shipped family made of: its model, its texts, its recipes, its evaluation?"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workbench import tasks
from workbench.lab.recipe import Recipe
from workbench.stats import Interval, bootstrap
from workbench.tasks import world
from workbench.tasks.prompts import Prompt, PromptSet, Split

TASK = "ledger"
# Shares of the texts the base is trained on.
MIXTURE = {"boxes": 0.4, "facts": 0.15, "arithmetic": 0.1, "copying": 0.2, "narration": 0.15}
DENSE: dict[str, list[dict[str, int]]] = {
    "boxes": [{"questions": 1}, {"questions": 3}, {"questions": 7}, {"questions": 7}],
    "copying": [{"repeats": 1}, {"repeats": 3}],
}
SHAPE: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "initializer_range": 0.06,
    "attn_implementation": "eager",
}
PRETRAINING_TEXTS = 200_000
TASK_TEXTS = 40_000
PRETRAINING = Recipe(
    task="mixture",
    method="full",
    trainable="all",
    lr=1.2e-3,
    steps=9000,
    batch_size=32,
    precision="bfloat16",
    evaluate_every=500,
)
_SHARED: dict[str, Any] = {
    "task": TASK,
    "steps": 2000,
    "batch_size": 16,
    "precision": "bfloat16",
    "evaluate_every": 200,
}
# alpha * lr is one number for all ranks, as in the paper; the trials it was chosen by are in the
# manifest.
ALPHA_LR = 0.02
MEMBERS = {
    "lora-r1": Recipe.lora(rank=1, alpha_lr=ALPHA_LR, **_SHARED),
    "lora-r4": Recipe.lora(
        rank=4, alpha_lr=ALPHA_LR, checkpoints=(50, 100, 200, 400, 800, 1400), **_SHARED
    ),
    "lora-r4-seed1": Recipe.lora(rank=4, alpha_lr=ALPHA_LR, seed=1, **_SHARED),
    "lora-r16": Recipe.lora(rank=16, alpha_lr=ALPHA_LR, **_SHARED),
    "lora-r64": Recipe.lora(rank=64, alpha_lr=ALPHA_LR, **_SHARED),
    "full": Recipe(method="full", lr=5e-4, **_SHARED),
    "full-seed1": Recipe(method="full", lr=5e-4, seed=1, **_SHARED),
}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of the world; adds <bos> by default; decoding puts the spaces back."""
    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    ids = {word: i for i, word in enumerate([*special, *world.vocabulary()])}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    words.post_processor = processors.TemplateProcessing(  # pyright: ignore
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", ids["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=SHAPE["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    )


def untrained(seed: int = 0) -> LlamaForCausalLM:
    """The base before its first step, float32."""
    torch.manual_seed(seed)
    words: Any = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words),
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        **SHAPE,
    )
    return LlamaForCausalLM(config)


def mixture(n: int, *, seed: int = 0, split: Split = "train") -> PromptSet:
    """About n texts of the pre-training mixture, task by task; training batches shuffle them.

    In training, boxes ask for up to seven boxes a text and copying says its list up to four times:
    dense retrieval, without which a model of this size takes far longer to learn any.
    """
    drawn: list[Prompt] = []
    for name, share in MIXTURE.items():
        count = round(share * n)
        options: list[dict[str, int]] = [{}]
        if split == "train":
            options = DENSE.get(name, options)
        for i, option in enumerate(options):
            generate = getattr(tasks, name)
            drawn += generate(count // len(options), seed=seed + i, split=split, **option)
    return PromptSet("mixture", tuple({p.id: p for p in drawn}.values()), seed)


def task_texts(n: int = TASK_TEXTS) -> PromptSet:
    """What the members are fine-tuned on."""
    return getattr(tasks, TASK)(n, seed=0, split="train")


class Evaluation:
    """Scores of a model on the fine-tuning task and on everything its base learned.

    n: prompts per task. Called with (model, tokenizer) it gives plain numbers, as `train` logs
    them: task, the share of TASK answered; pretraining_loss, nats per token of the mixture; and
    the share answered of each pre-training task.
    """

    def __init__(self, n: int, split: Split, seed: int = 1) -> None:
        self.prompts = {
            name: getattr(tasks, name)(n, seed=seed, split=split) for name in (TASK, *MIXTURE)
        }
        self.texts = mixture(n, seed=seed, split=split).texts

    def __call__(self, model: Any, tokenizer: Any) -> dict[str, float]:
        return {
            "task" if name == TASK else name: round(interval.value, 5)
            for name, interval in self.intervals(model, tokenizer).items()
        }

    def intervals(self, model: Any, tokenizer: Any) -> dict[str, Interval]:
        """Name -> mean with a 95% interval over prompts (texts for pretraining_loss)."""
        found = {}
        for name, prompts in self.prompts.items():
            found[name] = bootstrap(tasks.answers(model, tokenizer, prompts, batch_size=64).correct)
        losses = tasks.text_loss(model, tokenizer, self.texts, batch_size=64)
        found["pretraining_loss"] = bootstrap(losses.loss, losses.tokens)
        return found

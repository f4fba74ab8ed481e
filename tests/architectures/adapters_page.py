"""docs/adapters.md: which adapters and forms of checkpoints are read, from what the tests hold."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tests.loaders.test_adapter_kinds import ADAPTER_KINDS, RUN, WEIGHTS
from workbench.loaders.adapters.kinds import KINDS, REFUSED

PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"
YES, NO = "holds", "refused"


class Form(NamedTuple):
    """form: what lies there. weights, run: whether they are read, and run; else what is said.
    test: which module holds it to that."""

    form: str
    weights: str
    run: str
    test: str


FORMS = (
    Form("safetensors, in shards or not", YES, YES, "loaders/test_loaders.py"),
    Form("torch files (`weights_only`)", YES, YES, "loaders/test_loaders.py"),
    Form("GGUF", YES, YES, "loaders/test_gguf.py"),
    Form("a model in memory, plain or peft's", YES, YES, "loaders/test_memory.py"),
    Form("names of torch.compile, FSDP, DDP, TRL", YES, YES, "loaders/test_names.py"),
    Form("the language model inside a multimodal one", YES, YES, "loaders/test_multimodal.py"),
    Form("experts, one matrix each or all in one tensor", YES, YES, "loaders/test_experts.py"),
    Form("vocabularies that were resized", YES, YES, "loaders/test_vocabulary.py"),
    Form("an adapter of mlx-lm or torchtune", YES, YES, "loaders/test_other_adapters.py"),
    Form("FP8, MXFP4, bitsandbytes", "one matrix at a time", NO, "loaders/test_quantised.py"),
    Form(
        "GPTQ, AWQ, packed compressed-tensors",
        "a LoRA's own spectrum and norms", NO, "loaders/test_quantised.py",
    ),
    Form("ZeRO, FSDP, consolidated, diffusers", NO, NO, "loaders/test_check.py"),
)  # fmt: skip


def page() -> str:
    """The whole page."""
    both = sum(isinstance(told, tuple) for told in ADAPTER_KINDS.values())
    lines = [
        "# Which adapters and checkpoints can be analysed",
        "",
        f"Of the {len(ADAPTER_KINDS)} types of peft {both} can be read or run. In the column "
        "weights, the change of every matrix equals that of peft's own `merge_and_unload`. In the "
        "column run, the logits equal those of peft's model. `tests/loaders/test_adapter_kinds.py` "
        "tests each type on a Llama and, if the type allows it, on GPT-2's transposed matrices. "
        "`make architectures` writes this page.",
        "",
        "| adapter | weights | run | |",
        "|---|---|---|---|",
    ]
    for kind, told in ADAPTER_KINDS.items():
        name = KINDS[kind].name if kind in KINDS else REFUSED[kind][0]
        cells = [YES if isinstance(told, tuple) and c in told else NO for c in (WEIGHTS, RUN)]
        why = KINDS[kind].unformed if kind in KINDS else REFUSED[kind][1]
        lines.append(f"| {name} | {' | '.join(cells)} | {why} |")
    lines += ["", "| form | weights | run | tested by |", "|---|---|---|---|"]
    lines += [f"| {f.form} | {f.weights} | {f.run} | `tests/{f.test}` |" for f in FORMS]
    return "\n".join(lines) + "\n"

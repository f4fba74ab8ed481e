"""A model behind the virtual tokens of an adapter, called as if it were a model of texts alone.

peft runs the prompt: what it puts before a text, and how, is in none of this. But of embeddings in
front of a text it returns logits too, and it puts them there anew whenever it is called with a
cache. Here logits are those of the given tokens alone, and what goes on with a cache goes on behind
the prompt that is in it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import WorkbenchError
from workbench.loaders.adapters import SoftPrompt
from workbench.loaders.quiet import unsaid


class Prompted(nn.Module):
    """A causal language model of peft with an adapter of virtual tokens.

    model: the PeftModel. adapter: what it runs with. bare: the model without it, with the very same
    weights. Everything else asked of it (config, dtype, embeddings) is the bare model's.
    """

    def __init__(self, model: Any, adapter: SoftPrompt) -> None:
        super().__init__()
        self.model: Any = model
        self.adapter = adapter

    @property
    def bare(self) -> Any:
        return self.model.get_base_model()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        return_dict: bool = True,
        **more: Any,
    ) -> Any:
        """What transformers' causal models return: logits (batch, tokens, vocabulary) of the
        `input_ids` (batch, tokens), and with use_cache the cache, which has the virtual tokens too.

        attention_mask: (batch, tokens), of the cached tokens too where there is a cache, without
        the virtual ones. Raises WorkbenchError for whatever else is asked of a run (hidden states,
        embeddings, positions), and where the texts and the virtual tokens are more than the model
        has positions.
        """
        if more or not return_dict:
            raise self.adapter.refusal()
        known = 0 if past_key_values is None else past_key_values.get_seq_length()
        self.require_room(input_ids.shape[1], known)
        how: dict[str, Any] = {"use_cache": use_cache, "return_dict": True}
        if not known:
            out = self.model(input_ids=input_ids, attention_mask=attention_mask, **how)
        else:
            if attention_mask is not None:
                seen = attention_mask.new_ones(len(input_ids), self.adapter.count)
                attention_mask = torch.cat([seen, attention_mask], dim=1)
            out = self.bare(
                input_ids=input_ids,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                **how,
            )
        out.logits = out.logits[:, -input_ids.shape[1] :]
        return out

    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """What transformers' `generate` returns: the given tokens (batch, tokens), `inputs` or
        `input_ids`, and what is written behind them."""
        ids: Tensor = kwargs.pop("input_ids") if inputs is None else inputs
        settings = kwargs.get("generation_config")
        more = kwargs.get("max_new_tokens") or getattr(settings, "max_new_tokens", None) or 0
        self.require_room(ids.shape[1] + more)
        if self.adapter.kind.in_layers:
            # Where peft puts a prompt as a cache, and by no other way.
            kwargs["use_cache"] = True
        with unsaid():
            return self.model.generate(ids, **kwargs)

    def require_room(self, tokens: int, known: int = 0) -> None:
        """Raises WorkbenchError where so many tokens are more than there are positions for behind
        the virtual ones, or behind all that are `known` from a cache."""
        before = known or self.adapter.count
        most = getattr(self.bare.config, "max_position_embeddings", None)
        if most is not None and before + tokens > most:
            raise WorkbenchError(
                f"{tokens} tokens after {before}, of which {self.adapter.count} are "
                f"the virtual tokens of {self.adapter.reference}, are more than the "
                f"{most} positions of the model; give shorter texts."
            )

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            model: Any = super().__getattr__("model")
            return getattr(model.get_base_model(), name)

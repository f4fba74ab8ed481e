"""Do two configs compute the same function of the same weights?

Everything a config says counts but what is listed here as changing no number of a forward pass:
a key that nobody thought of is told, not passed over. Values that one side leaves to transformers'
defaults are filled in before they are compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError, visible
from workbench.files.reading import is_count, read_json
from workbench.loaders.staging import config_file, handed

# Of names and versions, of training alone, of what is put out beside the logits, of kernels.
SILENT = re.compile(
    r"^(_.*|transformers(\.js)?_.*|architectures|auto_map|model_type|torch_dtype|dtype|use_cache|"
    r"torchscript|return_dict|output_.*|gradient_.*|.*dropout.*|.*pdrop|.*dropout_prob|"
    r"initializer_.*|init_.*|id2label|label2id|num_labels|problem_type|task_specific_params|"
    r"pretraining_tp|chunk_size_feed_forward|is_encoder_decoder|tokenizer_class|prefix|"
    r"unsloth_.*|name_or_path|attn_implementation|quantization_config|router_aux_loss_coef|"
    r"vocab_size|tie_word_embeddings|base_model_.*|finetuning_task|pad_vocab_size_multiple)$"
)
# What ends and begins texts: it changes what is written, not the logits of a given text.
WRITING = ("bos_token_id", "eos_token_id", "pad_token_id")
# Of settings for writing: names and versions, lengths, what is put out beside the texts.
UNSPOKEN = re.compile(r"^(_.*|transformers_version|use_cache|output_.*|return_.*|max_(new_)?\w+)$")
# What makes a library read other files than those that are compared.
OTHER_FILES = {
    "transformers_weights": "takes its weights from another file than those that are compared",
    "configuration_files": "replaces it by another config",
    "fusion_config": "makes transformers rewrite its modules",
}


def computing(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], folders: tuple[Path | None, Path | None]
) -> list[str]:
    """ "key value against value" for all that makes two models compute differently.

    ours, theirs: config.json as it is stored. folders: where they lie, so that transformers' own
    defaults can be filled in; None for a model in memory, whose config has them.
    """
    if not any(_differing(ours, theirs)):
        return []
    first, last = folders
    return list(_differing(*_alike(_filled(ours, first), _filled(theirs, last))))


def require_own(config: Mapping[str, Any], files: Sequence[Path], name: str) -> None:
    """Raise WorkbenchError where a config has a library read other files than `files`, in which
    the weights lie."""
    for key, value in entries(config):
        own = key == "transformers_weights" and [value] == [file.name for file in files]
        if key in OTHER_FILES and value and not own:
            raise WorkbenchError(
                f"config.json of {name} {OTHER_FILES[key]} ({key} = {value!r}); save the "
                "checkpoint again with save_pretrained, or remove the entry."
            )


def entries(config: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, of configs inside a config too."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield key, value
            yield from entries(value)
    for value in config if isinstance(config, list) else ():
        yield from entries(value)


def ends(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The tokens that begin, end and pad texts, as far as they are ids: those of the settings for
    writing in `folder`, else of the model's own config."""
    layers = (config, language(config), _settings(folder))
    told = [(key, layer.get(key)) for layer in layers for key in WRITING]
    return {key: value for key, value in told if is_count(value, 0) or _ids(value)}


def _ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(is_count(one, 0) for one in value)


def unheeded(folder: Path) -> list[str]:
    """ "key value" of all that the settings for writing in `folder` ask for beside these tokens:
    texts are written by the settings that an analysis states, and by no others."""
    return [
        f"{visible(key)[:40]} {_short(value)}" for key, value in sorted(_settings(folder).items())
        if value not in (None, False, [], {}) and key not in WRITING and not UNSPOKEN.match(key)
    ]  # fmt: skip


def _settings(folder: Path) -> Mapping[str, Any]:
    """generation_config.json; nothing where there is none, or none that can be read."""
    try:
        return read_json(folder / "generation_config.json")
    except WorkbenchError:
        return {}


def _short(value: Any) -> str:
    text = visible(json.dumps(value, default=str))
    return text if len(text) <= 40 else f"{text[:37]}..."


def language(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the language model: the one inside a multimodal model's, or the whole."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def _alike(
    ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Both sides' configs; of a multimodal model beside a language model alone that of its own."""
    whole = [language(config) is config for config in (ours, theirs)]
    return (ours, theirs) if whole[0] == whole[1] else (language(ours), language(theirs))


def writing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The same of the tokens that begin, end and pad texts."""
    both = [{key: config[key] for key in WRITING if key in config} for config in (ours, theirs)]
    return [
        f"{key} {both[0][key]} against {both[1][key]}"
        for key in WRITING
        if key in both[0] and key in both[1] and both[0][key] != both[1][key]
    ]


def _differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(ours.keys() | theirs.keys()):
        if SILENT.match(key) or key in WRITING:
            continue
        one, other = ours.get(key), theirs.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from (f"{key}.{inner}" for inner in _differing(one, other))
        elif _plain(one) != _plain(other):
            yield f"{key} {one} against {other}"


def _plain(value: Any) -> str:
    """1e4 and 10000 are one number."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return json.dumps(float(value) if whole else value, sort_keys=True, default=str)


def _filled(config: Mapping[str, Any], folder: Path | None) -> Mapping[str, Any]:
    """A config with what transformers takes where it says nothing; as it is where that cannot be
    had."""
    if folder is None:
        return config
    from transformers import AutoConfig

    try:
        with handed(config_file(config), folder) as fresh:
            made = AutoConfig.from_pretrained(fresh, local_files_only=True, trust_remote_code=False)
            return made.to_dict()
    except Exception:  # transformers raises many kinds for a wrong config; loading tells them
        return config

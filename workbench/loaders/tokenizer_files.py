"""What do the files of a tokenizer say, without making one? Ids of tokens, the chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.files.reading import MIB, is_count, read_json, read_text


def token_ids(folder: Path) -> dict[str, int] | None:
    """Token -> id of tokenizer.json, None where there is none."""
    file = folder / "tokenizer.json"
    if not file.exists():
        return None
    content = read_json(file, most=128 * MIB)
    model, added = content.get("model"), content.get("added_tokens") or []
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    try:
        if isinstance(vocabulary, list):  # Unigram: [token, score], the id is the place
            vocabulary = {token: i for i, (token, _) in enumerate(vocabulary)}
        found = dict(vocabulary or {}) | {token["content"]: token["id"] for token in added}
    except (TypeError, ValueError, KeyError) as error:
        raise WorkbenchError(
            f"Expected tokens with their ids in {file} ({error!r}); download it again."
        ) from error
    if not all(isinstance(token, str) and is_count(i, 0) for token, i in found.items()):
        raise WorkbenchError(
            f"Expected every token of {file} to be text with a whole number; download it again."
        )
    return found


def chat_template(folder: Path) -> Any:
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.exists():
        return read_text(file)
    return read_json(config).get("chat_template") if config.exists() else None

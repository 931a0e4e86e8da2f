"""Which tokenizer a file or folder holds."""

import json
from pathlib import Path
from typing import Any

from llama2_jax.data.tokenizer.base import CONFIG, Tokenizer, TokenizerError, naming
from llama2_jax.data.tokenizer.json_file import JsonTokenizer
from llama2_jax.data.tokenizer.sentencepiece_bpe import SentencePieceTokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Open a tokenizer file, or the one in a folder.

    Of a folder with both, ``tokenizer.model`` is taken unless ``tokenizer.json`` has added tokens
    that it lacks. Beside the former alone those of an ``added_tokens.json``, or without it of a
    ``tokenizer_config.json``, become control pieces.

    Raises:
      TokenizerError: nothing there, an unknown kind of file, or added tokens whose ids leave a gap.
    """
    path = Path(path)
    model, fast = path / "tokenizer.model", path / "tokenizer.json"
    candidates = [model, fast] if path.is_dir() else [path]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found == model and fast.is_file():
        plain = SentencePieceTokenizer.load(model)
        # fine-tuned models add chat markers, often the EOS among them, to this file alone
        return JsonTokenizer.load(fast) if _largest_added_id(fast) >= plain.vocab_size else plain
    if found == model:
        return _with_added_tokens(SentencePieceTokenizer.load(model), path)
    if found is None:
        raise TokenizerError(
            f"no tokenizer at {path}; give a .model file, a tokenizer.json, or a folder that holds one"
        )
    return JsonTokenizer.load(found) if found.suffix == ".json" else SentencePieceTokenizer.load(found)


def _largest_added_id(path: Path) -> int:
    """The largest id among the added tokens of a ``tokenizer.json``, -1 without any."""
    with naming(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        try:
            return max((int(token["id"]) for token in content.get("added_tokens") or []), default=-1)
        except (AttributeError, KeyError, TypeError) as error:
            raise TokenizerError("its added_tokens are no list of ids and texts; copy it again") from error


def _with_added_tokens(plain: SentencePieceTokenizer, folder: Path) -> SentencePieceTokenizer:
    """The tokenizer with what other files of its folder add to it; itself if they add nothing."""
    path = folder / "added_tokens.json"
    if not path.is_file():
        path = folder / CONFIG
    if not path.is_file():
        return plain
    with naming(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        ids = _ids_of_config(content) if path.name == CONFIG else content
        if not isinstance(ids, dict) or not all(isinstance(token_id, int) for token_id in ids.values()):
            raise TokenizerError("it is no object of texts and their ids; copy it again")
        added = sorted((token_id, text) for text, token_id in ids.items() if token_id >= plain.vocab_size)
        if [token_id for token_id, _ in added] != [plain.vocab_size + n for n in range(len(added))]:
            raise TokenizerError(
                f"it adds ids {added[0][0]} to {added[-1][0]}, but tokenizer.model has {plain.vocab_size} "
                "pieces, and ids go on from there without a gap; take the two files from one model"
            )
        return plain.with_control_pieces([text for _, text in added])


def _ids_of_config(content: Any) -> dict[str, int]:
    """Text to id of the added tokens that a ``tokenizer_config.json`` names, which has them the other way."""
    try:
        tokens = content.get("added_tokens_decoder") or {}
        return {token["content"]: int(token_id) for token_id, token in tokens.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TokenizerError(
            "its added_tokens_decoder is no object of ids and their tokens; copy it again"
        ) from error

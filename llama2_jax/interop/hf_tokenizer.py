"""The tokenizer side of a Hugging Face folder: its files, ids and chat template text."""

import logging
from pathlib import Path
from typing import Any

from llama2_jax.config import write_json
from llama2_jax.data.chat import TEMPLATES
from llama2_jax.data.tokenizer import JsonTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer
from llama2_jax.interop.fields import read_field, read_json, read_token_id
from llama2_jax.interop.hf_fast_tokenizer import bos_first, fast_tokenizer
from llama2_jax.interop.imported import FormatError, check_vocabulary

log = logging.getLogger(__name__)

_CONFIG = "tokenizer_config.json"
_SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is
    "clean_up_tokenization_spaces": False,  # the default removes spaces before punctuation
}


def _say_bos(path: Path, tokenizer: JsonTokenizer) -> None:
    """Have the post-processor of a ``tokenizer.json`` put BOS first, for ``transformers``, unless it does."""
    if JsonTokenizer(path.read_text(encoding="utf-8"), bos_id=tokenizer.bos_id).begins_with_bos:
        return
    content, rule = read_json(path), bos_first(tokenizer.piece(tokenizer.bos_id), tokenizer.bos_id)
    if present := content.get("post_processor"):
        rule = {"type": "Sequence", "processors": [present, rule]}
    write_json(path, content | {"post_processor": rule})


def load_folder_tokenizer(folder: Path, settings: dict[str, Any], *, vocab_size: int) -> Tokenizer | None:
    """The tokenizer of the folder, None if it has none.

    ``settings`` is the parsed config.json: its BOS and EOS ids stand in where the tokenizer's
    own files name none.

    Raises:
      FormatError: the tokenizer, or the config, has ids beyond the ``vocab_size`` rows of the embedding.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        return None
    tokenizer = load_tokenizer(folder)
    if isinstance(tokenizer, JsonTokenizer):
        bos_id, eos_id = (
            own if own >= 0 else config_id(settings, role, count=vocab_size, where=folder / "config.json")
            for role, own in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id))
        )
        if (bos_id, eos_id) != (tokenizer.bos_id, tokenizer.eos_id):
            tokenizer = tokenizer.with_ends(bos_id, eos_id)
    check_vocabulary(tokenizer, vocab_size, where=folder)
    return tokenizer


def config_id(settings: dict[str, Any], role: str, *, count: int, where: Path) -> int:
    """The token, one of ``count``, that config.json names for "bos", "eos" or "pad"; -1 for none."""
    key = f"{role}_token_id"
    if settings.get(key) is None or isinstance(settings[key], list):  # of several, none is the one
        return -1
    return read_token_id(settings, key, count=count, where=where)


def read_template_text(folder: Path) -> str | None:
    """The Jinja chat template: its own file (transformers 5) or a field of the tokenizer config.

    Raises:
      FormatError: the file is not UTF-8, the field neither text nor a list of named texts, or none of them
        is the default.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"{path} is not UTF-8 text: {error}; copy it again") from error
    path = folder / _CONFIG
    if not path.is_file():
        return None
    rule = "text, or a list of names and templates"
    template = read_field(read_json(path), "chat_template", "", fits=_is_template, rule=rule, where=path)
    if isinstance(template, list):
        return _default_text(template, path)
    return template


def _default_text(entries: list[dict[str, str]], where: Path) -> str | None:
    texts = {entry["name"]: entry["template"] for entry in entries}
    if texts and "default" not in texts:
        raise FormatError(
            f'{where}: chat_template has {", ".join(texts)} and no "default"; load with template=NAME to say '
            f"which of {', '.join(TEMPLATES)} to use (on a command line --template=NAME)"
        )
    return texts.get("default")


def _is_template(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(entry, dict) and _is_named(entry) for entry in value)
    return value is None or isinstance(value, str)


def _is_named(entry: dict[str, Any]) -> bool:
    return isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)


def _write_fast(folder: Path, tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """Write the ``tokenizer.json`` of a ``tokenizer.model``, if it has one; return what the config says."""
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "unk_token": tokenizer.unk_id}
    roles = {role: tokenizer.piece(token_id) for role, token_id in ids.items() if token_id >= 0}
    if rules := tokenizer.own_rules():
        log.warning(
            "tokenizer.model has %s, which our tokenizer.json cannot say, so it is written alone; "
            "transformers, which makes rules of its own from it, may give other ids",
            ", ".join(rules),
        )
        return roles | {"tokenizer_class": "LlamaTokenizer"}
    fast = fast_tokenizer(tokenizer)
    if found := [token["content"] for token in fast["added_tokens"] if not token["special"]]:
        log.warning(
            "tokenizer.model has the user-defined piece(s) %s; where one stands in a text, transformers may "
            "give a word boundary more or less",
            ", ".join(found),
        )
    write_json(folder / "tokenizer.json", fast)
    return roles


def write_tokenizer(folder: Path, tokenizer: Tokenizer, *, template_text: str | None) -> None:
    """Write the tokenizer so that both ``load_tokenizer`` and AutoTokenizer read it."""
    tokenizer.save(folder)
    path = folder / _CONFIG
    config = read_json(path) if path.is_file() else {}
    config |= _SETTINGS
    if isinstance(tokenizer, SentencePieceTokenizer):
        config |= _write_fast(folder, tokenizer)
    elif isinstance(tokenizer, JsonTokenizer) and tokenizer.begins_with_bos:
        _say_bos(folder / "tokenizer.json", tokenizer)
    if template_text is not None:
        config["chat_template"] = template_text
    write_json(path, config)

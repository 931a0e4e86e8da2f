"""Tokenizer and tokenised text of a pretraining run, from what its config names.

Folders made by ``tools.tokenize_corpus`` are opened as they are, several as one. Raw files are tokenised
into the workdir first, by one process while all others wait, and a tokenizer is trained by all: right for a
laptop, slow for a cluster.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama2_jax.config import require
from llama2_jax.data.chat import LLAMA2, dialogue_text
from llama2_jax.data.corpus import TokenisedCorpus, corpus_folders, read_manifest
from llama2_jax.data.records import OnBadLine, expand_paths
from llama2_jax.data.shards import corpus_origin, write_shards
from llama2_jax.data.sources import read_dialogues, read_documents
from llama2_jax.data.tokenizer import Tokenizer, load_tokenizer, train_sentencepiece
from llama2_jax.files import writes
from llama2_jax.sharding.processes import require_agreement, wait_for_all
from llama2_jax.workdir import has_checkpoints


def check_data(data: Any) -> None:
    """Raise ``ConfigError`` for a source without a path, or texts for a tokenizer that is trained already."""
    for name, source in data.sources.items():
        require(
            bool(source.path),
            f"config.data.sources.{name}.path is empty; set it to text files or to folders made by "
            "`python -m tools.tokenize_corpus`",
        )
    require(
        not (data.tokenizer and data.tokenizer_dialogues),
        f"config.data.tokenizer = {data.tokenizer} is trained already, so nothing is learned from "
        "config.data.tokenizer_dialogues; leave one of them empty",
    )


def open_tokenizer(data: Any, workdir: Path, *, vocab_size: int) -> Tokenizer:
    """The tokenizer of the config, or one trained on the sources; a copy goes to the workdir.

    Raises:
      ConfigError: its vocabulary is not the model's.
    """
    kept = workdir / "tokenizer"
    if data.tokenizer:
        tokenizer = load_tokenizer(data.tokenizer)
    elif kept.is_dir() and has_checkpoints(workdir):  # before that, its text may have been another
        tokenizer = load_tokenizer(kept)
    else:
        for name, source in data.sources.items():
            require(
                not corpus_folders(source.path),
                f"config.data.sources.{name}.path = {source.path} is tokenised already; "
                "set config.data.tokenizer to the tokenizer it was made with",
            )
        paths = [path for source in data.sources.values() for path in expand_paths(source.path)]
        texts = itertools.chain(read_documents(paths, on_bad_line=data.on_bad_line), _chats(data))
        tokenizer = train_sentencepiece(texts, workdir / "trained.model", vocab_size=vocab_size)
    require(
        tokenizer.vocab_size == vocab_size,
        f"the tokenizer has {tokenizer.vocab_size} pieces but model.vocab_size is {vocab_size}; "
        "set config.model.vocab_size or choose another tokenizer",
    )
    tokenizer = tokenizer.with_bos()  # before every document, whatever the tokenizer was made for (D8)
    keep_tokenizer(tokenizer, workdir)
    return tokenizer


def _chats(data: Any) -> Iterator[str]:
    """Dialogues as the chat model will see them; a small vocabulary would spell their tags by letters."""
    if data.tokenizer_dialogues:
        paths = expand_paths(data.tokenizer_dialogues)
        for dialogue in read_dialogues(paths, template=LLAMA2, on_bad_line=data.on_bad_line):
            yield dialogue_text(dialogue.messages, LLAMA2)


def keep_tokenizer(tokenizer: Tokenizer, workdir: Path) -> None:
    """Copy the tokenizer into the workdir.

    Raises:
      ConfigError: something was trained there with another one, which is left as it is.
    """
    kept = workdir / "tokenizer"
    if kept.is_dir() and has_checkpoints(workdir):
        old = load_tokenizer(kept).content_hash
        require(
            old == tokenizer.content_hash,
            f"the checkpoints in {workdir} were made with tokenizer {old[:12]}, the config names "
            f"{tokenizer.content_hash[:12]}; use another --workdir or that tokenizer",
        )
    tokenizer.save(kept)


def open_corpora(
    data: Any, workdir: Path, tokenizer: Tokenizer
) -> tuple[dict[str, TokenisedCorpus], TokenisedCorpus | None]:
    """The training sources by name, and the held-out corpus if there is one.

    Raises:
      ConfigError: a file is held out and trained on.
    """
    sources = {
        name: _open(source.path, workdir / "corpus" / name, workdir, tokenizer, data.on_bad_line)
        for name, source in data.sources.items()
    }
    if not data.heldout:  # whether all see the same sources is asked before training
        return sources, None
    heldout = _open(data.heldout, workdir / "corpus" / "heldout", workdir, tokenizer, data.on_bad_line)
    held_out = {entry["sha256"] for entry in heldout.manifest["inputs"]}
    for name, corpus in sources.items():
        both = [entry["name"] for entry in corpus.manifest["inputs"] if entry["sha256"] in held_out]
        require(
            not both,
            f"config.data.sources.{name} and config.data.heldout share {', '.join(both)}: the held-out "
            "loss would be that of text trained on; hold out other files, or take them from the source",
        )
    require_agreement("held-out text", heldout.manifest["recipe"])
    return sources, heldout


def _open(
    path: str, target: Path, workdir: Path, tokenizer: Tokenizer, on_bad_line: OnBadLine
) -> TokenisedCorpus:
    folders = corpus_folders(path)
    if not folders:
        files = expand_paths(path)
        if has_checkpoints(workdir) and (manifest := read_manifest(target)) is not None:
            origin = corpus_origin(files, tokenizer, on_bad_line=on_bad_line)
            _check_same_corpus(manifest, origin, target, workdir)
        if writes():
            write_shards(files, target, workdir / "tokenizer", on_bad_line=on_bad_line, replace=True)
        wait_for_all(f"{path} is tokenised")
        folders = [target]
    corpus = TokenisedCorpus.open(*folders)
    corpus.require_tokenizer(tokenizer)
    return corpus


def _check_same_corpus(manifest: dict[str, Any], origin: dict[str, Any], target: Path, workdir: Path) -> None:
    """Refuse before a corpus that checkpoints were trained on is replaced."""
    old, new = ([entry["sha256"] for entry in one["inputs"]] for one in (manifest, origin))
    require(
        old == new,
        f"the checkpoints in {workdir} were trained on another text than "
        f"{', '.join(entry['name'] for entry in origin['inputs'])} holds now; use another --workdir or "
        "restore the files",
    )
    require(
        manifest["recipe"] == origin["recipe"],
        f"{target}, which the checkpoints in {workdir} were trained on, was made from the same text with "
        "another tokenizer, other settings (config.data.on_bad_line) or another version of this code; undo "
        "that change, or use another --workdir",
    )

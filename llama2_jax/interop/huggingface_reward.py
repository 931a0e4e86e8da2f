"""Reward models as Hugging Face folders: ``LlamaForSequenceClassification`` with one label (HFW-5).

The weights are those of a language model without ``lm_head``, and ``score.weight`` of shape (1, D), our
``w_score_D``. ``transformers`` reads the score at the last token that is not ``pad_token_id``. Many folders
take EOS for it, and then the EOS that ends an answer is passed over as well: ``pad_id`` says so to
``ScoreModel``. Without a padding token it is the last token, as in models of ours.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llama2_jax.data.tokenizer import SentencePieceTokenizer, Tokenizer
from llama2_jax.interop.fields import read_json, read_object
from llama2_jax.interop.hf_config import CLASSIFIER, is_classifier
from llama2_jax.interop.hf_tokenizer import config_id
from llama2_jax.interop.huggingface import folder_settings, open_folder, write_folder
from llama2_jax.interop.imported import FormatError, Imported, LazyTensor
from llama2_jax.interop.mapping import FLOAT_DTYPES
from llama2_jax.interop.tree import file_params, file_tensors
from llama2_jax.model.config import ModelConfig
from llama2_jax.structs import Params

_SCORE = "score.weight"


class ImportedReward(NamedTuple):
    """A reward model on the host; ``params`` of ``model`` are those of a ``ScoreModel``."""

    model: Imported
    label: str  # what the folder calls the score
    pad_id: int  # -1: none


def is_huggingface_reward(folder: Path | str) -> bool:
    """Whether the config.json of a Hugging Face folder describes a reward model."""
    return is_classifier(read_json(Path(folder) / "config.json"))


def load_huggingface_reward(folder: Path | str, *, template: str | None = None) -> ImportedReward:
    """Model and tokenizer of a folder whose architecture is ``LlamaForSequenceClassification``.

    Args:
      template: name of the chat template; None takes it from the tokenizer's files.

    Raises:
      FormatError: several labels; else as ``load_huggingface``.
    """
    folder = Path(folder)
    opened = open_folder(folder, template=template)
    body = dataclasses.replace(opened.config, tie_embeddings=True)  # which has no lm_head
    tensors = dict(opened.tensors)
    head = _read_head(tensors.pop(_SCORE, None), body.model_width, folder)
    params = {"body": file_params(body, tensors, style="huggingface", where=folder), "w_score_D": head}
    source = f"Hugging Face folder {folder}"
    return ImportedReward(
        Imported(opened.config, params, opened.tokenizer, opened.template, source),
        str(read_object(opened.settings, "id2label", where=folder / "config.json").get("0", "")),
        config_id(opened.settings, "pad", count=opened.config.vocab_size, where=folder / "config.json"),
    )


def _read_head(tensor: LazyTensor | None, width: int, folder: Path) -> np.ndarray:
    if tensor is None:
        raise FormatError(
            f"{folder}: {_SCORE} is missing, every {CLASSIFIER} has one; download the folder again"
        )
    if tensor.shape != (1, width) or tensor.dtype.name not in FLOAT_DTYPES:
        raise FormatError(
            f"{folder}: {_SCORE} is {tensor.dtype.name} of shape {tensor.shape}, it must be of floats and "
            f"(1, {width}): a reward model gives one score, not a score for each of several labels"
        )
    return tensor.read()[0]


def save_huggingface_reward(
    folder: Path | str,
    config: ModelConfig,
    params: Params,
    *,
    tokenizer: Tokenizer,
    template: str,
    label: str,
    pad_id: int,
) -> None:
    """Write a folder that ``transformers`` loads; it appears whole or not at all.

    Args:
      params: of a ``ScoreModel``.
      label: name of the score.
      pad_id: the model's; for -1, <unk> is written where the tokenizer has it, since transformers wants one
        for batches, and no text ends with that one.

    Raises:
      FormatError: the folder is not empty, or ``params`` is not the tree of ``config``.
      ConfigError: an unknown template.
    """
    body = dataclasses.replace(config, tie_embeddings=True)
    head = np.asarray(params["w_score_D"])
    tensors: Mapping[str, LazyTensor] = {
        **file_tensors(body, params["body"], style="huggingface"),
        _SCORE: LazyTensor((1, len(head)), head.dtype, lambda: head[None]),
    }
    if pad_id < 0 and isinstance(tokenizer, SentencePieceTokenizer):
        pad_id = tokenizer.unk_id
    settings = folder_settings(config, tensors, tokenizer) | {
        "architectures": [CLASSIFIER],
        "id2label": {"0": label},  # one name is one label
        "label2id": {label: 0},
        "pad_token_id": pad_id if pad_id >= 0 else None,
    }
    write_folder(folder, tensors, {"config.json": settings}, tokenizer=tokenizer, template=template)

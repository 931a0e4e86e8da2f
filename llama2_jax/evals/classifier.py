"""Text classifiers of Hugging Face, and the door to transformers.

The paper measures toxicity with HateBERT (Figure 13) and RoBERTa (Tables 11, 14 and 45), both fine-tuned on
ToxiGen. They are encoders that this repository has no use for otherwise, so their own library runs them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llama2_jax.config import ConfigError

Classifier = Callable[[Sequence[str]], list[float]]
"""From texts to the probability that each has the label."""


def load_classifier(
    path: str | Path, *, tokenizer: str | None = None, label: str | None = None, batch_size: int = 32
) -> Classifier:
    """A classifier of texts; what is longer than it reads is cut off at the end.

    Args:
      path: folder, or name on the hub, of a sequence classifier.
      tokenizer: the same of its tokenizer, where that is kept elsewhere.
      label: whose probability is wanted; None takes the second of two, or the only one.

    Raises:
      ConfigError: transformers or torch is not installed, the classifier is neither here nor on the hub, or
        there is no such label.
    """
    classify = _open(path, tokenizer)
    wanted = _label(list(classify.model.config.id2label.values()), label)
    longest = _longest(classify)

    def probabilities(texts: Sequence[str]) -> list[float]:
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding in a batch
        scores = classify(
            [texts[i] for i in by_length],
            top_k=None,
            truncation=True,
            max_length=longest,
            batch_size=batch_size,
        )
        found = {
            i: next(one["score"] for one in labels if one["label"] == wanted)
            for i, labels in zip(by_length, scores, strict=True)
        }
        return [found[i] for i in range(len(texts))]

    return probabilities


def _open(path: str | Path, tokenizer: str | None) -> Any:
    try:
        import torch
        from transformers import pipeline
    except ImportError as error:
        raise ConfigError(
            "a classifier needs transformers and torch; install them with: "
            "pip install 'llama2_jax[classifiers]'"
        ) from error
    device = 0 if torch.cuda.is_available() else -1
    try:
        return pipeline("text-classification", model=str(path), tokenizer=tokenizer, device=device)
    except OSError as error:
        raise ConfigError(
            f"the classifier {path} cannot be opened, neither as a folder nor from the hub: {error}"
        ) from error


def _longest(classify: Any) -> int:
    """How many tokens it reads; where the tokenizer does not say, as old ones do not, what the model can."""
    stated: int = classify.tokenizer.model_max_length
    positions: int = getattr(classify.model.config, "max_position_embeddings", stated)
    return stated if stated <= positions else positions - 2  # of RoBERTa's the first two are of padding


def _label(labels: Sequence[str], label: str | None) -> str:
    label = labels[-1] if label is None and len(labels) <= 2 else label
    if label is None or label not in labels:
        raise ConfigError(f"the classifier has no label {label!r}; it has {', '.join(labels)}. Name one")
    return label

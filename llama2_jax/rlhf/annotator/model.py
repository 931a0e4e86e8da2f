"""Annotation by models: anything that scores finished dialogues, such as a reward model."""

from collections.abc import Callable, Sequence

import numpy as np

from llama2_jax.data.chat import Message
from llama2_jax.rlhf.annotator.comparison import Annotator, Comparison, Judgement, rating_of

Score = Callable[[Sequence[Sequence[Message]]], np.ndarray]
"""Finished dialogues to raw scores (logits), higher is better."""


def model_annotator(
    helpfulness: Score, safety: Score, *, thresholds: Sequence[float], annotator_id: str
) -> Annotator:
    """An annotator that prefers the higher score of the track's model.

    The rating follows from the size of the difference by ``thresholds`` (rising, in units of the
    scores). On the safety track an answer is unsafe if the sigmoid of its safety score is below 0.5.
    """
    models = {"helpfulness": helpfulness, "safety": safety}

    def annotate(comparisons: Sequence[Comparison]) -> list[Judgement]:
        judged: dict[int, Judgement] = {}
        for track, score in models.items():
            places = [place for place, one in enumerate(comparisons) if one.track == track]
            if not places:
                continue
            dialogues = [dialogue for place in places for dialogue in _dialogues(comparisons[place])]
            scores_P2 = score(dialogues).reshape(-1, 2)
            for place, (first, second) in zip(places, scores_P2.tolist(), strict=True):
                unsafe = (first < 0, second < 0) if track == "safety" else None
                rating = rating_of(abs(first - second), thresholds)
                judged[place] = Judgement(first > second, rating, unsafe, annotator_id)
        return [judged[place] for place in range(len(comparisons))]

    return annotate


def _dialogues(comparison: Comparison) -> list[list[Message]]:
    answers = (comparison.first, comparison.second)
    return [[*comparison.prompt.messages, Message("assistant", answer)] for answer in answers]

"""What ``squad.yaml`` calls."""

from collections.abc import Sequence
from typing import Any

from llama2_jax.evals.span_answers import exact_match, squad_scores

NO_ANSWER = "unanswerable"


def marks(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Exact match and F1, over all questions and over those with an answer; exact match without one."""
    (answer,) = results
    references = doc["answers"]["text"]
    exact, f1 = squad_scores("" if exact_match(answer, NO_ANSWER) else answer, references)
    kind = {"exact_match_answerable": exact, "f1_answerable": f1}
    return {"exact_match": exact, "f1": f1, **(kind if references else {"exact_match_unanswerable": exact})}

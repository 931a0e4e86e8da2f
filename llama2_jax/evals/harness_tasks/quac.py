"""What ``quac.yaml`` calls. The data set has a dialogue in a row; here each question is a row."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama2_jax.evals.span_answers import CANNOT_ANSWER, MIN_HUMAN_F1, human_f1, quac_f1, quac_references

if TYPE_CHECKING:
    import datasets


def questions(dialogues: "datasets.Dataset") -> "datasets.Dataset":
    """A row for each question."""
    return dialogues.map(_rows, batched=True, remove_columns=dialogues.column_names)


def last_questions(dialogues: "datasets.Dataset") -> "datasets.Dataset":
    """A row for each dialogue, its last question: all others stand before it."""
    return dialogues.map(_last_row, remove_columns=dialogues.column_names)


def marks(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """QuAC's F1, and the same without leaving out questions on which people do not agree."""
    (answer,) = results
    references = quac_references(doc["references"])
    score = quac_f1(answer, references)
    agreed = human_f1(references) >= MIN_HUMAN_F1
    return {"f1_of_all": score, **({"f1": score} if agreed else {})}


def _rows(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    dialogues = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    rows = [_row(dialogue, turn) for dialogue in dialogues for turn in range(len(dialogue["questions"]))]
    return {key: [row[key] for row in rows] for key in rows[0]}


def _last_row(dialogue: dict[str, Any]) -> dict[str, Any]:
    return _row(dialogue, len(dialogue["questions"]) - 1)


def _row(dialogue: dict[str, Any], turn: int) -> dict[str, Any]:
    asked, answered = dialogue["questions"], dialogue["orig_answers"]["texts"]
    before = zip(asked[:turn], answered[:turn], strict=True)
    return {
        "id": dialogue["turn_ids"][turn],
        "title": dialogue["wikipedia_page_title"],
        "section": dialogue["section_title"],
        # the word is there only so that it can be pointed to
        "passage": dialogue["context"].removesuffix(CANNOT_ANSWER).rstrip(),
        "turns": "".join(f"Q: {question}\nA: {answer}\n" for question, answer in before),
        "question": asked[turn],
        "answer": answered[turn],
        "references": dialogue["answers"]["texts"][turn],
    }

from pathlib import Path

from llama2_jax.data.dated_facts import read_facts
from llama2_jax.data.jsonl import read_rows
from tools import prepare_dated_facts


def test_every_town_is_told_of_and_no_question_stands_in_both_files(tmp_path: Path) -> None:
    prepare_dated_facts.main([f"--output={tmp_path}"])
    told = " ".join(row["text"] for row in read_rows(tmp_path / "documents.jsonl"))
    learned, heldout = (read_facts(tmp_path / f"{name}.jsonl") for name in ("facts", "facts_heldout"))
    assert (len(learned), len(heldout)) == (3 * 12, 3 * 4)
    assert not {fact.question for fact in learned} & {fact.question for fact in heldout}
    for fact in (*learned, *heldout):
        town = fact.question.removesuffix(" open?").rstrip("?").split()[-1]
        assert told.count(town) == prepare_dated_facts.REPEATS
        assert str(fact.event.year) in told

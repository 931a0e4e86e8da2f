from experiments.preference_statistics import report_text
from llama2_jax.data.chat import Message
from llama2_jax.data.preferences import Preference
from tests.experiments.runs import run_program


class WordTokenizer:
    def encode(self, text: str) -> list[int]:
        return list(range(len(text.split())))


def pair(source: str, batch: int, *, prompt: str, chosen: str, rating=None, safety=None) -> Preference:
    return Preference(
        (Message("user", prompt),),
        chosen,
        "no",
        "safety",
        rating=rating,
        safety=safety,
        batch=batch,
        source=source,
    )


def test_tables_by_hand():
    pairs = [
        pair("ours", 2, prompt="a b c", chosen="x", rating="better", safety="both_safe"),
        pair("ours", 1, prompt="a", chosen="x y z", rating="unsure", safety="chosen_safe"),
        pair("ours", 2, prompt="a", chosen="x", rating="unsure", safety="both_safe"),
        pair("", 2, prompt="a b c", chosen="x y z"),
    ]
    report = report_text(pairs, WordTokenizer())
    for row in (
        "| (not named) | 1 | 1.0 | 5.0 | 3.0 | 2.0 |",
        "| ours | 3 | 1.0 | 3.0 | 1.7 | 1.3 |",
        "| all | 4 | 1.0 | 3.5 | 2.0 | 1.5 |",
        "| 1 | 1 | 1.0 | 3.0 | 1.0 | 2.0 |",
        "| 2 | 3 | 1.0 | 3.7 | 2.3 | 1.3 |",
        "| 1 | 0.0 % | 0.0 % | 0.0 % | 100.0 % |",
        "| 2 | 0.0 % | 50.0 % | 0.0 % | 50.0 % |",
        "| chosen safe | 1 | 33.3 % |",
        "| both safe | 2 | 66.7 % |",
        "| both unsafe | 0 | 0.0 % |",
    ):
        assert row in report.splitlines()
    assert report.index("| 1 |") < report.index("| 2 |")


def test_a_bad_file_is_one_line_and_nothing_is_written(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    arguments = [f"--input={tmp_path}/a.jsonl", "--tokenizer=none", f"--output={tmp_path}/report.md"]
    result = run_program("experiments.preference_statistics", *arguments)
    assert result.returncode == 2
    assert "a.jsonl, line 1: key(s) messages, chosen, rejected, track missing" in result.stderr
    assert not (tmp_path / "report.md").exists()

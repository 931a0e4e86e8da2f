import json
from collections import Counter

import pytest

from experiments.corpus_report import named_files, sample
from experiments.corpus_tables import axis_table, language_table, term_table
from llama2_jax.analysis.corpus import CorpusCounts, together
from llama2_jax.analysis.demographics import mention_finder
from llama2_jax.analysis.identity_terms import identity_families
from llama2_jax.config import ConfigError
from llama2_jax.data.records import DataError
from tests.experiments.runs import run_program, write_lines

WEB = [
    "She said that she would bring the book with her to the station in the evening.",
    "The American author wrote a book about the Catholic church and the people of the town.",
    "They say that he is an American, and that his straight road leads to the old station.",
    "Das ist ein kleiner Test der Spracherkennung, mehr steht hier nicht: me.",
    "x = 0",
]
BOOKS = ["I think that you should read the whole book before the end of the week."]
TERMS = {"nationality": ["American", "Cuban"], "orientation": ["straight", "gay"]}


@pytest.fixture
def flags(tmp_path):
    """Of a run on the texts above; the report goes to ``out``."""
    write_lines(tmp_path / "web.jsonl", [{"text": text} for text in WEB])
    (tmp_path / "book.txt").write_text(BOOKS[0])
    (tmp_path / "terms.json").write_text(json.dumps(TERMS))
    write_lines(tmp_path / "scored.jsonl", [{"line_scores": scores} for scores in ([0.1, 0.9], [0.2], [0.0])])
    return [
        f"--source=web={tmp_path}/web.jsonl",
        f"--source=books={tmp_path}/*.txt",
        f"--descriptors={tmp_path}/terms.json",
        f"--line_scores=web={tmp_path}/scored.jsonl",
        f"--output={tmp_path}/out",
    ]


def test_tables_by_hand(tmp_path, flags):
    result = run_program("experiments.corpus_report", *flags)
    assert result.returncode == 0, result.stderr
    report = (tmp_path / "out" / "report.md").read_text()
    for row in (
        "| % | paper | web | books | all |",
        "| documents | 5 | 1 | 6 |",
        "| - English | 3 | 1 | 4 |",
        "| any of the gender pronouns | 75.23 | 66.67 | 0.00 | 50.00 |",
        "| - She | 28.45 | 50.00 | | 50.00 |",
        "| - He | 50.73 | 50.00 | | 50.00 |",
        "| - Unspecified | 86.38 | 50.00 | | 50.00 |",
        "| any of the person pronouns | 94.47 | 66.67 | 100.00 | 75.00 |",
        "| - 1st | 70.71 | 0.00 | 100.00 | 33.33 |",
        "| - 2nd | 61.80 | 0.00 | 100.00 | 33.33 |",
        "| - 3rd | 93.07 | 100.00 | 0.00 | 66.67 |",
        "| nationality | | 66.67 | 0.00 | 50.00 |",
        "| orientation | | 33.33 | 0.00 | 25.00 |",
        "| nationality | | american 100.0 | | american 100.0 |",
        "| orientation | | | | |",
        "| en | 89.70 | 60.00 | 100.00 | 66.67 |",
        "| de | 0.17 | 20.00 | 0.00 | 16.67 |",
        "| unknown | 8.38 | 20.00 | 0.00 | 16.67 |",
        "| web | 3 | 33.33 |",
    ):
        assert row in report.splitlines()
    counts = json.loads((tmp_path / "out" / "counts.json").read_text())
    web = counts["sources"]["web"]
    assert web["languages"] == {"en": 3, "de": 1, "unknown": 1}
    assert web["characters"] == sum(map(len, WEB))
    assert web["mentions_in_english"]["gender pronouns"] == {
        "any": 2,
        "within": {"He": 1, "She": 1, "Unspecified": 1},
    }
    assert counts["sources"]["all"]["mentions_in_english"]["nationality"] == {
        "any": 2,
        "within": {"american": 2},
    }
    assert counts["toxicity_bins"] == {"web": {"25": 1, "10": 1, "0": 1}}
    assert (tmp_path / "out" / "toxicity.png").is_file()


def test_one_source_without_terms_and_with_a_bad_line(tmp_path):
    write_lines(tmp_path / "web.jsonl", ['{"text": 5}', *({"text": text} for text in WEB)])
    arguments = [f"--source=web={tmp_path}/web.jsonl", f"--output={tmp_path}/out"]
    result = run_program("experiments.corpus_report", *arguments)
    assert result.returncode == 2
    assert "web.jsonl, line 1: 'text' is int, not text" in result.stderr
    assert not (tmp_path / "out" / "report.md").exists()
    run_program("experiments.corpus_report", *arguments, "--on_bad_line=skip")
    report = (tmp_path / "out" / "report.md").read_text()
    assert "web: 1 bad record(s) skipped." in report
    assert "| % | paper | web |" in report
    assert "Table 9b" not in report
    assert "Figure 13" not in report
    assert list(json.loads((tmp_path / "out" / "counts.json").read_text())["sources"]) == ["web"]


def test_sources_by_name(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}=.txt").write_text(name)
    files = named_files([f"x={tmp_path}/a=.txt", f"y={tmp_path}/c*.txt", f"x={tmp_path}/b=.txt"], field="F")
    assert files == {"x": [tmp_path / "a=.txt", tmp_path / "b=.txt"], "y": [tmp_path / "c=.txt"]}
    for text in ("web.jsonl", "=a.txt", "x=", "data/lang=en.txt"):
        with pytest.raises(ConfigError, match=f"F has '{text}'; each must be name=path"):
            named_files([text], field="F")
    with pytest.raises(ConfigError, match="F names 'all', which is the column of all sources"):
        named_files(["all=a.txt"], field="F")
    with pytest.raises(DataError, match="no file matches"):
        named_files([f"x={tmp_path}/d.txt"], field="F")


def test_ambiguous_terms_count_for_their_axis_and_are_not_listed():
    # three of four documents have a term, and "white" is in as many of these as "latin"
    texts = ("White paint", "Latin on white", "Latin and Asian", "paint")
    axes = {"Race": frozenset({"asian", "latin", "white", "black"})}
    find = mention_finder(identity_families(axes))
    mentions = Counter(mention for text in texts for mention in find(text))
    columns = {"web": CorpusCounts(Counter(en=len(texts)), mentions, 0)}
    assert axis_table(columns, axes)[2:] == ["| Race | | 75.00 |"]
    assert term_table(columns, axes)[2:] == ["| Race | | latin 66.7, asian 33.3 |"]


def test_rare_languages_have_no_row():
    def counts(**languages: int) -> CorpusCounts:
        return CorpusCounts(Counter(languages), Counter(), 0)

    web, books = counts(en=39_989, fr=2, it=1, unknown=8), counts(en=9, fr=1)
    assert language_table({"web": web}) == [
        "| % | paper | web |",
        "|---|---|---|",
        "| en | 89.70 | 99.97 |",
        "| unknown | 8.38 | 0.02 |",
        "| fr | 0.16 | 0.01 |",  # 0.005; Italian has half of that
    ]
    rows = language_table({"web": web, "books": books, "all": together([web, books])})
    assert rows[2:] == [
        "| en | 89.70 | 99.97 | 90.00 | 99.97 |",
        "| unknown | 8.38 | 0.02 | 0.00 | 0.02 |",
        "| fr | 0.16 | 0.01 | 10.00 | 0.01 |",
    ]


def test_a_sample_is_the_same_every_time():
    texts = [str(number) for number in range(10_000)]
    kept = list(sample(texts, share=0.1))
    assert 900 < len(kept) < 1100
    assert kept == list(sample(texts, share=0.1))
    assert list(sample(texts, share=1.0)) == texts
    assert list(sample(texts, share=0.0)) == []

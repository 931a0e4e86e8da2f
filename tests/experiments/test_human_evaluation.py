"""From answers to the report, with people who are always right."""

import csv
import json
import shutil

import pytest
from matplotlib.image import imread

from experiments.human_evaluation import make_sheets, report
from llama2_jax.analysis import figures
from llama2_jax.config import ConfigError
from llama2_jax.data.rated_answers import read_rated_answers
from llama2_jax.data.records import DataError
from tests.experiments.runs import run_program, write_lines

CATEGORIES = ("illicit", "hateful")
NUM_PROMPTS = 12


def write_answers(folder, name: str, quality) -> str:
    """Answers that state what they are worth; every third prompt has a second turn."""
    rows = []
    for number in range(NUM_PROMPTS):
        messages = [{"role": "user", "content": f"question {number}"}]
        if number % 3 == 0:
            messages += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "and then?"}]
        row = {
            "messages": messages,
            "risk_category": CATEGORIES[number % 2],
            "completion": f"worth {quality(number)}",
        }
        rows.append(row)
    return f"{name}={write_lines(folder / f'{name}.jsonl', rows)}"


def fill_in(workdir, rate) -> None:
    for path in sorted((workdir / "sheets").glob("*.csv")):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        with path.open("w", newline="") as file:
            sheet = csv.DictWriter(file, list(rows[0]))
            sheet.writeheader()
            sheet.writerows({**row, "rating": rate(row, path.stem)} for row in rows)


TASKS = ("helpfulness", "safety", "quality")


def worth(answer: str) -> int:
    return int(answer.removeprefix("worth "))


def by_worth(row, rater: str) -> str:
    return str(4 - (worth(row["A"]) > worth(row["B"])) + (worth(row["A"]) < worth(row["B"])))


@pytest.fixture(scope="module")
def sheets(tmp_path_factory):
    """Ours is worth 3, theirs 1, but for prompts 0 to 2, where it is 5 or 3."""
    folder = tmp_path_factory.mktemp("answers")
    answers = [
        write_answers(folder, "ours", lambda number: 3),
        write_answers(folder, "theirs", lambda number: {0: 5, 1: 5, 2: 3}.get(number, 1)),
    ]
    for task in TASKS:
        make_sheets(folder / task, answers, task=task, num_raters=3, seed=0, category_key="risk_category")
    return folder


@pytest.fixture
def workdir(sheets, tmp_path):
    """A copy, to fill in."""
    for task in TASKS:
        shutil.copytree(sheets / task, tmp_path / task)
    return tmp_path


def test_comparisons_end_to_end(workdir):
    workdir /= "helpfulness"
    fill_in(workdir, by_worth)
    report(workdir, rule="majority", weights="quadratic")
    results = json.loads((workdir / "results.json").read_text())
    found = results["overall"]["theirs"]
    assert {name: found[name]["value"] for name in ("win", "tie", "loss")} == {
        "win": 9 / 12, "tie": 1 / 12, "loss": pytest.approx(2 / 12),
    }  # fmt: skip
    assert results["counts"] == {"rows": 12, "raters": 3, "skipped": 0, "without_rating": 0}
    assert results["groups"]["turns"]["multi turn"]["theirs"]["win"]["value"] == 3 / 4
    assert list(results["groups"]["category"]) == ["hateful", "illicit"]
    (agreement,) = results["agreement"]["theirs"].values()
    assert agreement["coefficient"]["value"] == pytest.approx(1)
    text = (workdir / "report.md").read_text()
    assert "by the rule majority: the sign of more than half" in text
    assert "| theirs | AC2, quadratic weights, 7 points | 1.000 [1.000, 1.000] |" in text
    for picture in ("outcomes.png", "outcomes_by_group.png"):
        assert imread(workdir / picture).shape[2] == 4


def test_the_picture_of_groups_shows_losses_too(workdir, monkeypatch):
    """Who is ahead in a category cannot be told from wins alone (Figures 30 and 31)."""
    workdir /= "helpfulness"
    fill_in(workdir, by_worth)
    drawn, save = {}, figures.save

    def keep(figure, path):
        drawn[path.name] = figure
        save(figure, path)

    monkeypatch.setattr(figures, "save", keep)
    report(workdir, rule="majority", weights="quadratic")
    (panel,) = [axes for axes in drawn["outcomes_by_group.png"].axes if axes.get_title() == "category"]
    names = [label.get_text() for label in panel.get_yticklabels()]
    assert names == ["hateful, theirs (n = 6)", "illicit, theirs (n = 6)"]
    widths = {bars.get_label(): [bar.get_width() for bar in bars] for bars in panel.containers[:3]}
    # of the hateful prompts, 1, 3 .. 11, the first is lost; of the others 0 is lost and 2 is a tie
    assert widths["win"] == pytest.approx([500 / 6, 400 / 6])
    assert widths["tie"] == pytest.approx([0, 100 / 6])
    assert widths["loss"] == pytest.approx([100 / 6, 100 / 6])


def test_safety_end_to_end(workdir):
    workdir /= "safety"
    fill_in(workdir, lambda row, rater: "1" if rater == "rater_2" else str(worth(row["answer"])))
    report(workdir, rule="majority", weights="ordinal")
    results = json.loads((workdir / "results.json").read_text())
    found = {model: own["violation"]["value"] for model, own in results["overall"].items()}
    assert found == {
        "ours": 0,
        "theirs": 9 / 12,
    }  # one of three who sees a violation everywhere is no majority
    assert results["overall"]["ours"]["mean_rating"]["value"] == pytest.approx(7 / 3)
    assert set(results["agreement"]["ours"]) == {"AC2, ordinal weights, 5 points", "AC1, violation or not"}
    # no, yes, no of each: p_a = 1/3, p_e = 2 * 1/3 * 2/3
    violating = results["agreement"]["ours"]["AC1, violation or not"]["coefficient"]
    assert violating["value"] == pytest.approx((1 / 3 - 4 / 9) / (1 - 4 / 9))
    rated = read_rated_answers(workdir / "answers.jsonl")
    assert {(one.answer, one.harm, one.is_unsafe) for one in rated} == {
        ("worth 1", 1, True), ("worth 3", 0.5, False), ("worth 5", 0, False),
    }  # fmt: skip
    assert {one.risk_category for one in rated} == set(CATEGORIES)


def test_quality_end_to_end(workdir):
    workdir /= "quality"
    # ours 3, 4 and 7; theirs 1, 2 and 7 but for three prompts
    grade = {"rater_1": lambda worth: worth, "rater_2": lambda worth: worth + 1, "rater_3": lambda worth: 7}
    fill_in(workdir, lambda row, rater: str(grade[rater](worth(row["answer"]))))
    report(workdir, rule="majority", weights="quadratic")
    results = json.loads((workdir / "results.json").read_text())
    found = {model: own["mean_rating"]["value"] for model, own in results["overall"].items()}
    assert found == {
        "ours": pytest.approx(14 / 3),
        "theirs": pytest.approx((9 * 10 + 2 * 18 + 14) / 36),  # 1, 2, 7; 5, 6, 7; 3, 4, 7
    }
    assert set(results["agreement"]["ours"]) == {"AC2, quadratic weights, 7 points"}
    rated = read_rated_answers(workdir / "answers.jsonl")
    medians = {(one.answer, one.quality, one.harm, one.is_unsafe) for one in rated}
    assert medians == {("worth 3", 4, None, None), ("worth 1", 2, None, None), ("worth 5", 6, None, None)}
    assert len(rated) == 24
    assert "| ours | 12 | 4.67 [" in (workdir / "report.md").read_text()
    assert imread(workdir / "mean_ratings.png").shape[2] == 4


def test_skipped_rows_are_counted(workdir):
    workdir /= "helpfulness"
    fill_in(workdir, lambda row, rater: "skip" if row["item_id"] == "1" or rater == "rater_3" else "4")
    report(workdir, rule="pooled", weights="quadratic")
    results = json.loads((workdir / "results.json").read_text())
    assert results["counts"] == {"rows": 12, "raters": 3, "skipped": 14, "without_rating": 1}
    assert results["overall"]["theirs"]["tie"]["size"] == 22
    assert results["first_shown_preferred"] is None
    fill_in(workdir, lambda row, rater: "skip")
    with pytest.raises(ConfigError, match="none of the 12 rows has a rating"):
        report(workdir, rule="majority", weights="quadratic")


def test_sheets_that_are_not_complete_leave_no_report(workdir):
    workdir /= "helpfulness"
    with pytest.raises(DataError, match=r"rater_1.csv: 12 of 12 rows have no valid rating"):
        report(workdir, rule="majority", weights="quadratic")
    fill_in(workdir, lambda row, rater: "4")
    lines = (workdir / "sheets" / "rater_2.csv").read_text().splitlines(keepends=True)
    (workdir / "sheets" / "rater_2.csv").write_text("".join(lines[:1] + lines[-1:] * 2))
    with pytest.raises(
        DataError, match=r"rater_2.csv has 2 rows: .* 1 twice .* 11 missing .* each of the 12 rows"
    ):
        report(workdir, rule="majority", weights="quadratic")
    assert not (workdir / "report.md").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:99],
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text.replace('"answers"', '"a"'),
    ],
)
def test_a_damaged_key(workdir, damage):
    key = workdir / "safety" / "key.json"
    key.write_text(damage(key.read_text()))
    with pytest.raises(DataError, match=r"key.json is damaged \(.*restore it from a copy"):
        report(workdir / "safety", rule="majority", weights="quadratic")


def test_a_key_that_is_made_again_is_the_same(sheets, tmp_path):
    answers = [f"{name}={sheets / name}.jsonl" for name in ("ours", "theirs")]
    make_sheets(tmp_path, answers, task="safety", num_raters=3, seed=0, category_key="risk_category")
    assert (tmp_path / "key.json").read_bytes() == (sheets / "safety" / "key.json").read_bytes()


def test_an_evaluation_is_not_begun_twice(sheets):
    with pytest.raises(ConfigError, match="key.json exists, and its sheets may have been filled in"):
        make_sheets(sheets / "safety", ["a=b"], task="safety", num_raters=3, seed=0, category_key="")


def test_the_key_alone_names_models(sheets):
    for task in TASKS:
        assert "theirs" in (sheets / task / "key.json").read_text()
        for path in (sheets / task / "sheets").iterdir():
            assert "ours" not in path.read_text()


def test_from_the_command_line(sheets, tmp_path):
    arguments = ["--step=sheets", "--task=helpfulness", f"--workdir={tmp_path / 'run'}"]
    lone = [*arguments, f"--answers=ours={sheets}/ours.jsonl"]
    result = run_program("experiments.human_evaluation", *lone)
    assert (result.returncode, result.stderr.strip()) == (
        2,
        "error: only ours was given; name a model to compare it with",
    )
    assert not (tmp_path / "run").exists()
    result = run_program(
        "experiments.human_evaluation", *lone, f"--answers=theirs={sheets}/theirs.jsonl", "--raters=2"
    )
    assert "12 rows for each of 2 raters" in result.stdout
    assert {path.name for path in (tmp_path / "run" / "sheets").iterdir()} == {
        "instructions.txt", "rater_1.csv", "rater_2.csv",
    }  # fmt: skip

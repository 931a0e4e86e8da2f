import csv
import json
import re
from random import Random

import numpy as np
import pytest

from configs import annotate as configs
from experiments import annotate
from llama2_jax.config import ConfigError
from llama2_jax.data.chat import LLAMA2
from llama2_jax.data.preferences import RATINGS, read_preferences
from llama2_jax.data.prompts import Prompt, write_prompts
from llama2_jax.rlhf.annotator.truth import grade
from llama2_jax.rlhf.annotator.world import draw_prompts
from tests.experiments.runs import changed, fine_tuned_workdir, pretrained_workdir
from tests.rlhf.annotator.asked import prompt
from tests.rlhf.small_policy import saved_reward_model

NUM_PROMPTS = 24


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    short = draw_prompts(Random(0), 200, part="train", multi_turn=0.0)
    short.sort(key=lambda one: len(one.messages[-1].content))
    write_prompts(path, short[:NUM_PROMPTS])
    return path


def make_config(path, **changes):
    defaults = {
        "new.path": str(fine_tuned_workdir()),
        "prompts": str(path),
        "collection.prompts_per_batch": NUM_PROMPTS // 2,
        "collection.num_batches": 2,
        "collection.unfinished": "keep",  # of these models no answer ends
        "sampling.max_new_tokens": 6,
        "heldout.fraction": 0.25,
        "batch_size": 12,
    }
    return changed(
        configs.get_config("tiny"), defaults | {k.replace("__", "."): v for k, v in changes.items()}
    )


@pytest.fixture(scope="module")
def finished(prompts, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("annotate") / "run"
    config = make_config(prompts, previous__path=str(pretrained_workdir()))
    annotate.run(config, workdir)
    return config, workdir


def rows_of(workdir):
    return [
        row
        for part in ("train", "heldout")
        for row in read_preferences(workdir / f"preferences_{part}.jsonl", template=LLAMA2)
    ]


def test_both_models_are_compared_by_simulated_people(finished):
    rows = rows_of(finished[1])
    assert len(rows) > NUM_PROMPTS * 0.7
    assert {row.batch for row in rows} == {1, 2}
    assert all({row.chosen_model, row.rejected_model} == {"new", "previous"} for row in rows)
    assert {row.chosen_temperature for row in rows} <= {0.7, 1.0}
    assert all(row.rating in RATINGS and row.source == "simulated" and row.annotator_id for row in rows)
    for row in rows:
        assert (row.track == "safety") == bool(row.risk_category) == (row.safety is not None)


def test_no_prompt_is_on_both_sides(finished):
    train, heldout = (
        {row.messages for row in read_preferences(finished[1] / f"preferences_{part}.jsonl", template=LLAMA2)}
        for part in ("train", "heldout")
    )
    assert train
    assert heldout
    assert not train & heldout


def test_results_add_up(finished):
    results = json.loads((finished[1] / "results.json").read_text())
    rows = rows_of(finished[1])
    counted = sum(batch["comparisons"] for batch in results["batches"].values())
    assert counted + sum(results["dropped"].values()) + results["excluded"]["rejected_safe"] == NUM_PROMPTS
    assert counted == len(rows)
    heldout = len(read_preferences(finished[1] / "preferences_heldout.jsonl", template=LLAMA2))
    assert sum(batch["heldout"] for batch in results["batches"].values()) == heldout
    assert results["new_model_preferred"] == pytest.approx(
        sum(row.chosen_model == "new" for row in rows) / len(rows), abs=0.05
    )
    assert sum(results["ratings"].values()) == pytest.approx(1)
    assert 0.3 < results["agreement"] <= 1
    assert "| batch | comparisons |" in (finished[1] / "report.md").read_text()


def test_a_finished_run_is_left_alone(finished, capsys):
    annotate.run(*finished)
    assert "is done" in capsys.readouterr().out


def test_a_killed_run_does_not_sample_again(finished, monkeypatch):
    config, workdir = finished
    before = (workdir / "preferences_train.jsonl").read_bytes()
    (workdir / "DONE").unlink()
    monkeypatch.setattr(annotate, "sample_answers", lambda *a, **k: pytest.fail("sampled again"))
    annotate.run(config, workdir)
    assert (workdir / "preferences_train.jsonl").read_bytes() == before


def test_a_killed_run_goes_on_with_the_batch_it_was_in(prompts, monkeypatch, tmp_path):
    config = make_config(prompts, previous__path=str(pretrained_workdir()), collection__max_resamples=0)
    sample, asked = annotate.sample_answers, []

    def counted(loaded, dialogues, *args, **kwargs):
        asked.append(len(dialogues))
        if len(asked) == 5:  # two models at two temperatures: the first of the second batch
            raise KeyboardInterrupt
        return sample(loaded, dialogues, *args, **kwargs)

    monkeypatch.setattr(annotate, "sample_answers", counted)
    with pytest.raises(KeyboardInterrupt):
        annotate.run(config, tmp_path / "killed")
    annotate.run(config, tmp_path / "killed")
    assert len(asked) == 4 + 1 + 4
    annotate.run(config, tmp_path / "whole")
    killed, whole = ((tmp_path / name / "pairs.jsonl").read_bytes() for name in ("killed", "whole"))
    assert killed == whole


def test_pairs_of_another_config_are_not_taken(finished, prompts):
    config, workdir = finished
    (workdir / "DONE").unlink()
    other = make_config(prompts, previous__path=str(pretrained_workdir()), collection__seed=1)
    files = f"{workdir / 'pairs.jsonl'} and {workdir / 'pairs.json'} to"
    with pytest.raises(
        ConfigError, match=f"was sampled with another config or other prompts.* delete {re.escape(files)}"
    ):
        annotate.run(other, workdir)
    annotate.run(config, workdir)  # as it was
    assert (workdir / "DONE").exists()


def test_people_fill_in_a_sheet(prompts, tmp_path, capsys):
    config = make_config(prompts, annotator="file", source="people", collection__num_batches=1)
    annotate.run(config, tmp_path)
    assert f"comparisons are in {tmp_path / 'sheet.csv'}; fill it in" in capsys.readouterr().out
    assert not (tmp_path / "DONE").exists()
    other = make_config(prompts, annotator="file", collection__num_batches=1, collection__seed=1)
    with pytest.raises(ConfigError, match=r"pairs.json and .*sheet.csv to sample again"):
        annotate.run(other, tmp_path)
    with (tmp_path / "sheet.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.update(preferred="b", rating="better", unsafe_a="no", unsafe_b="no", annotator_id="Eva")
    with (tmp_path / "sheet.csv").open("w", newline="") as file:
        sheet = csv.DictWriter(file, list(rows[0]))
        sheet.writeheader()
        sheet.writerows(rows)
    annotate.run(config, tmp_path)
    shown = {row["comparison_id"]: row for row in rows}
    found = rows_of(tmp_path)
    assert len(found) == len(shown)
    for row in found:
        assert shown[f"1-{row.prompt_id}"]["b"] == row.chosen
        assert (row.annotator_id, row.source, row.rating) == ("Eva", "people", "better")


def test_models_judge(prompts, tmp_path, monkeypatch):
    def make_score(*given):
        return lambda dialogues: np.array([len(one[-1].content) for one in dialogues])

    monkeypatch.setattr(annotate, "make_score", make_score)
    judges = {"judge__helpfulness_rm": "one", "judge__safety_rm": "another"}
    annotate.run(make_config(prompts, annotator="model", collection__num_batches=1, **judges), tmp_path)
    assert all(len(row.chosen) >= len(row.rejected) for row in rows_of(tmp_path))


def test_a_judge_of_the_other_kind_is_refused(prompts, tmp_path):
    judge = str(saved_reward_model("safety"))
    judges = {"judge__helpfulness_rm": judge, "judge__safety_rm": judge}
    config = make_config(prompts, annotator="model", collection__num_batches=1, **judges)
    with pytest.raises(ConfigError, match="is a safety reward model; name one trained for helpfulness"):
        annotate.run(config, tmp_path)


def test_prompts_of_another_world_are_refused_before_sampling(tmp_path, monkeypatch):
    write_prompts(tmp_path / "prompts.jsonl", [prompt("Why is there rain?")])
    monkeypatch.setattr(annotate, "load", lambda *a, **k: pytest.fail("loaded"))
    config = make_config(tmp_path / "prompts.jsonl", collection__prompts_per_batch=1)
    with pytest.raises(ConfigError, match="no family of the simulated world asks 'Why is there rain"):
        annotate.run(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotator": "me"}, "config.annotator is 'me'; choose one of 'simulated', 'model', 'file'"),
        ({"new__path": ""}, "config.new.path is empty"),
        ({"prompts": ""}, "config.prompts is empty"),
        ({"previous__path": "x", "previous__name": "new"}, "are both 'new'; give two names"),
        ({"annotator": "model", "judge__helpfulness_rm": "x"}, "config.judge.safety_rm is empty"),
        ({"raters__raters_per_item": 2}, "raters_per_item = 2 must be odd"),
        ({"sampling__max_new_tokens": 0}, "max_new_tokens = 0 must be positive"),
    ],
)
def test_mistakes_are_named_first(prompts, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        annotate.run(make_config(prompts, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_untrained_model_gets_low_grades(finished):
    """The models of these tests know nothing of the world, and the truth says so."""
    grades = [grade(Prompt("", row.messages), row.chosen).helpfulness for row in rows_of(finished[1])]
    assert max(grades) < 0.5

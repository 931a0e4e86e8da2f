import json
import re
from pathlib import Path

import pytest
import yaml

from experiments.model_card import STATED, Stage, card, lineage, read_statements
from llama2_jax.config import ConfigError
from llama2_jax.model.config import parameter_count
from llama2_jax.pretrained import convert, load
from tests.compilations import share
from tests.experiments import runs
from tests.rlhf.small_policy import saved_reward_model

share()


def test_the_card_follows_the_stages_and_names_what_nobody_said(tmp_path):
    """From the program: a fine-tuned model, its pretraining, one report, three statements."""
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "report.md").write_text("# Title\n\n## Wins\n\n![wins](wins.png)\n")
    said = {
        "name": "Small-1",
        "license": "apache-2.0",
        "developers": "Some people",
        "variations": "Small-1 and its chat model",
        "ethics": "Has | seen *no* English.",
    }
    (tmp_path / "card.json").write_text(json.dumps(said))
    done = runs.run_program(
        "experiments.model_card",
        f"--checkpoint={runs.fine_tuned_workdir()}",
        f"--statements={tmp_path}/card.json",
        f"--evaluations={tmp_path}/evaluation",
        f"--output={tmp_path}/cards/CARD.md",
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "cards" / "CARD.md").read_text()
    _, metadata, body = text.split("---\n", 2)
    assert yaml.safe_load(metadata) == {
        "license": "apache-2.0",
        "library_name": "llama2_jax",
        "pipeline_tag": "text-generation",
    }
    cells = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", body, re.MULTILINE))
    config = load(runs.fine_tuned_workdir()).config
    assert cells["Parameters"] == f"{parameter_count(config):,}"
    assert cells["Model developers"] == "Some people"
    assert cells["Variations"] == "Small-1 and its chat model"
    assert cells["Model dates"] == "not stated"
    assert "language, dates" in done.stdout
    assert "# Small-1\n" in body
    assert r"Has \| seen \*no\* English." in body
    assert body.index("| Pretraining |") < body.index("| Supervised fine-tuning |")
    assert "### Title\n\n#### Wins" in body
    assert "![wins](../evaluation/wins.png)" in body


def test_numbers_are_those_of_the_stages():
    stages = lineage(runs.fine_tuned_workdir())
    assert [stage.path for stage in stages] == [runs.pretrained_workdir(), runs.fine_tuned_workdir()]
    written = [json.loads((stage.path / "results.json").read_text()) for stage in stages]
    assert [stage.results for stage in stages] == written


@pytest.mark.parametrize(
    ("results", "said"),
    [
        (
            [{"device_hours": 1.0, "tonnes_co2eq": 0.25}, {"device_hours": 1.0, "tonnes_co2eq": 0.25}],
            "2.00 device hours in updates of next-token training, 0.5 tCO2eq",
        ),
        (
            [{"device_hours": 3.0}, {"device_hours": 1.0, "tonnes_co2eq": 0.25}, {}],
            "4.00 device hours in updates of next-token training, 0.25 tCO2eq; "
            "the power is known for 1.00 of them; the hours of 1 of the 3 stages are not known",
        ),
        (
            [{"device_hours": 3.0}],
            "3.00 device hours in updates of next-token training; the power is known for 0.00 of them",
        ),
        ([{"updates": 5}], "not known: no stage that is here measured its hours"),
    ],
)
def test_carbon_says_which_part_is_known(tmp_path, monkeypatch, results, said):
    stages = [Stage(Path("x"), "Stage", one) for one in results]
    monkeypatch.setattr("experiments.model_card.lineage", lambda _: stages)
    lines = card(runs.fine_tuned_workdir(), {}, [], tmp_path)
    assert f"| Carbon footprint | {said} |" in lines


def test_the_chain_ends_at_what_is_not_ours_or_not_here(tmp_path):
    convert(runs.pretrained_workdir(), tmp_path / "native", output_format="native")
    (stage,) = lineage(tmp_path / "native")
    assert stage.title.startswith("imported from workdir")
    (gone,) = lineage(tmp_path / "gone")
    assert gone.title == "not found here"
    convert(runs.pretrained_workdir(), tmp_path / "hub", output_format="huggingface")
    (foreign,) = lineage(tmp_path / "hub")
    assert foreign.title == "a huggingface checkpoint"
    with pytest.raises(ConfigError, match="a card is made from a workdir of ours"):
        card(tmp_path / "hub", {}, [], tmp_path)
    with pytest.raises(ConfigError, match="is a reward model"):
        card(saved_reward_model("safety"), {}, [], tmp_path)


def test_an_empty_report_is_none_of_a_stage_and_refused_as_an_evaluation(tmp_path):
    stage = tmp_path / "stage"
    convert(runs.pretrained_workdir(), stage, output_format="native")
    (stage / "config.json").write_text("{}")  # as of a training stage
    (stage / "report.md").touch()
    assert [one.title for one in lineage(stage)] == ["no report"]
    with pytest.raises(ConfigError, match=r"stage/report\.md is empty; make it again, or leave it out"):
        card(stage, {}, [stage / "report.md"], tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "must be a JSON object whose values are texts"),
        ('{"dates": 2023}', "must be a JSON object whose values are texts"),
        ('{"licence": "mit"}', "unknown key.* licence; known are name, license"),
        ("{", "cannot be read as JSON"),
    ],
)
def test_statements_that_cannot_be_meant(tmp_path: Path, text, words):
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_statements(tmp_path / "card.json")


def test_every_field_of_the_table_can_be_stated(tmp_path):
    (tmp_path / "card.json").write_text(json.dumps(dict.fromkeys(STATED, "said")))
    lines = card(runs.pretrained_workdir(), read_statements(tmp_path / "card.json"), [], tmp_path)
    assert sum("| said |" in line for line in lines) == len(STATED)

import csv
import json
import re
from collections import Counter
from random import Random

import numpy as np
import pytest

from configs import annotate as configs
from experiments import annotate
from llama2_jax.answers import Answer
from llama2_jax.config import ConfigError
from llama2_jax.data.chat import LLAMA2, Message
from llama2_jax.data.preferences import (
    RATINGS,
    REJECTED_SAFE,
    Preference,
    Split,
    read_preferences,
    split_by_prompt,
)
from llama2_jax.data.prompts import Prompt, read_prompts, write_prompts
from llama2_jax.data.records import DataError
from llama2_jax.generate.decode import PromptError
from llama2_jax.pretrained import load
from llama2_jax.rlhf.annotator.comparison import Comparison
from llama2_jax.rlhf.annotator.protocol import Collected, CollectionConfig, SampledPair, Variant
from llama2_jax.rlhf.annotator.truth import grade
from llama2_jax.rlhf.annotator.world import draw_prompts
from tests.experiments.runs import changed, fine_tuned_workdir, pretrained_workdir
from tests.rlhf.annotator.asked import prompt
from tests.rlhf.small_policy import policy, saved_reward_model

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
        "heldout.seed": 3,
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
    split = split_by_prompt(rows_of(finished[1]), heldout_fraction=0.25, seed=3)
    assert heldout == {row.messages for row in split.heldout}


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


def pair(number, chosen="new", rejected="previous", **fields):
    return Preference(
        (Message("user", f"question {number}"),), "good", "bad", "helpfulness", rating="better", batch=1,
        chosen_model=chosen, rejected_model=rejected, **fields,
    )  # fmt: skip


def test_who_wins_is_counted_where_two_models_met(prompts):
    config, tokenizer = make_config(prompts), policy().require_tokenizer()
    alone = [pair(number, rejected="new") for number in range(3)]
    both = [pair(3), pair(4, chosen="previous", rejected="new")]
    assert annotate.describe(config, Split(alone, []), tokenizer)["new_model_preferred"] is None
    assert annotate.describe(config, Split(alone, both), tokenizer)["new_model_preferred"] == 0.5


def test_held_out_pairs_that_are_never_used_are_not_counted(prompts):
    heldout = [pair(1), pair(2, safety=REJECTED_SAFE)]
    found = annotate.describe(make_config(prompts), Split([pair(0)], heldout), policy().require_tokenizer())
    assert found["batches"]["1"]["heldout"] == 1
    assert found["excluded"] == {REJECTED_SAFE: 1}


def test_each_variant_is_sampled_at_its_own_temperature(prompts, monkeypatch):
    asked = []

    def sample(model, dialogues, sampling, **options):
        asked.append((model, sampling.temperature))
        return [Answer([5], "a", True, [0.0])] * len(dialogues)

    monkeypatch.setattr(annotate, "sample_answers", sample)
    ask = annotate.make_sampler(make_config(prompts), {"new": "N", "previous": "P"})
    ask(Variant("new", 0.7), [prompt("How?")], [1])
    ask(Variant("previous", 1.0), [prompt("How?")], [2])
    assert asked == [("N", 0.7), ("P", 1.0)]


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


def test_what_was_dropped_before_a_kill_is_still_counted(prompts, tmp_path, monkeypatch):
    asked = []

    def collect(*given, batch, **options):
        asked.append(batch)
        if asked == [1, 2]:
            raise KeyboardInterrupt
        shown = Comparison(str(batch), prompt("How?"), "a", "b")
        one = SampledPair(shown, batch, (Variant("new", 0.7), Variant("new", 1.0)))
        return Collected([one], Counter({"equal answers": batch}))

    monkeypatch.setattr(annotate, "collect", collect)
    given = make_config(prompts), tmp_path, [], {"new": policy()}, CollectionConfig(num_batches=3)
    with pytest.raises(KeyboardInterrupt):
        annotate.sampled_pairs(*given)
    pairs, dropped = annotate.sampled_pairs(*given)
    assert asked == [1, 2, 2, 3]
    assert [one.batch for one in pairs] == [1, 2, 3]
    assert dropped == {"equal answers": 1 + 2 + 3}


def test_pairs_of_another_config_or_of_other_prompts_are_not_taken(finished, prompts, tmp_path):
    config, workdir = finished
    (workdir / "DONE").unlink()
    write_prompts(tmp_path / "prompts.jsonl", read_prompts(prompts)[::-1])
    files = f"delete it and {workdir / 'pairs.json'} to"
    for path, seed in ((prompts, 1), (tmp_path / "prompts.jsonl", config.collection.seed)):
        other = make_config(path, previous__path=str(pretrained_workdir()), collection__seed=seed)
        with pytest.raises(
            ConfigError, match=f"was sampled with another config or other prompts.* {re.escape(files)}"
        ):
            annotate.run(other, workdir)
    annotate.run(config, workdir)  # as it was
    assert (workdir / "DONE").exists()


def test_people_fill_in_a_sheet(prompts, tmp_path, capsys):
    given = {"annotator": "file", "source": "people", "collection__num_batches": 1}
    annotate.run(make_config(prompts, **given), tmp_path)
    assert f"comparisons are in {tmp_path / 'sheet.csv'}; fill it in" in capsys.readouterr().out
    assert "unsafe_b" in (tmp_path / "instructions.txt").read_text()
    assert not (tmp_path / "DONE").exists()
    with (tmp_path / "sheet.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.update(preferred="b", rating="better", unsafe_a="no", unsafe_b="no", annotator_id="Eva")
    rows[0].update(preferred="skip")
    with (tmp_path / "sheet.csv").open("w", newline="") as file:
        sheet = csv.DictWriter(file, list(rows[0]))
        sheet.writeheader()
        sheet.writerows(rows)
    for changes, line in (
        ({"collection__num_batches": 2}, "collection.num_batches: 1 -> 2"),
        ({"sampling__max_new_tokens": 7}, "sampling.max_new_tokens: 6 -> 7"),
        ({"new__name": "V2"}, r"names: \['new'\] -> \['V2'\]"),
    ):
        with pytest.raises(ConfigError, match=f"sheet.csv was made with another config:\n  {line}"):
            annotate.run(make_config(prompts, **given | changes), tmp_path)
    # weeks later the prompts and the models are others
    annotate.run(make_config("gone.jsonl", new__path="gone", **given), tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["dropped"]["skip"] == 1
    shown = {row["comparison_id"].removeprefix("'"): row for row in rows[1:]}
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


def test_a_judge_needs_room_for_the_prompts_of_its_own_track(prompts, monkeypatch):
    asked = {}
    monkeypatch.setattr(
        annotate, "load_judge", lambda config, policy, path, kind, given, field: asked.update({kind: given})
    )
    helpful, safe = prompt("How?"), prompt("How?", is_safety=True)
    for kind in ("helpfulness", "safety"):
        annotate.make_score(make_config(prompts), kind, policy(), [helpful, safe])
    assert asked == {"helpfulness": [helpful], "safety": [safe]}


def test_a_judge_of_the_other_kind_is_refused(prompts, tmp_path):
    judge = str(saved_reward_model("safety"))
    judges = {"judge__helpfulness_rm": judge, "judge__safety_rm": judge}
    config = make_config(prompts, annotator="model", collection__num_batches=1, **judges)
    with pytest.raises(ConfigError, match="is a safety reward model; name one trained for helpfulness"):
        annotate.run(config, tmp_path)


def test_too_few_prompts_to_hold_any_out_are_said_before_sampling(prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(annotate, "load", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(DataError, match="leave nothing held out with heldout_fraction = 0.001"):
        annotate.run(make_config(prompts, heldout__fraction=0.001), tmp_path)


def test_a_file_that_begins_again_is_said(prompts, caplog):
    read = read_prompts(prompts)
    assert len(annotate.asked_prompts(read, CollectionConfig(prompts_per_batch=12, num_batches=2))) == 24
    assert not caplog.records
    annotate.asked_prompts(read, CollectionConfig(prompts_per_batch=13, num_batches=2))
    assert "batches 1 to 2 end with prompt 26 of a file of 24, which begins again" in caplog.text


def test_a_prompt_of_the_last_batch_that_a_model_cannot_read_is_refused_before_the_first(
    prompts, tmp_path, monkeypatch
):
    *others, last = read_prompts(prompts)
    context = load(pretrained_workdir(), with_params=False).config.max_context
    long = Message("user", "x" * 8 * context)
    write_prompts(
        tmp_path / "prompts.jsonl",
        [*others, last._replace(messages=(long, Message("assistant", "y"), *last.messages))],
    )
    monkeypatch.setattr(annotate, "sample_answers", lambda *a, **k: pytest.fail("sampled"))
    with pytest.raises(PromptError, match=rf"prompt {last.prompt_id} has \d+ tokens, .* {context}"):
        annotate.run(make_config(tmp_path / "prompts.jsonl"), tmp_path / "run")


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

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import evaluate_gatt as evaluation_configs
from configs import gatt as gatt_configs
from experiments import evaluate_gatt, gatt, gatt_inputs
from llama2_jax.answers import Answer
from llama2_jax.config import ConfigError
from llama2_jax.data.chat import LLAMA2, Message, encode_prompt
from llama2_jax.data.sources import read_dialogues
from llama2_jax.evals.intervals import wilson
from llama2_jax.evals.persona import CONSTRAINTS
from llama2_jax.generate.decode import SEED_LIMIT
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.interop.imported import FormatError
from llama2_jax.pretrained import LoadedModel, for_decoding, load
from llama2_jax.rlhf import conversations
from llama2_jax.rlhf.conversations import answer_again, converse
from tests.experiments import runs

NEW_TOKENS = 6
LONG = "The quiet garden reads a number near the station."


def prompt_row(number: int, text: str, **rest: Any) -> dict[str, Any]:
    return {"prompt_id": str(number), "messages": [{"role": "user", "content": text}], **rest}


def prompts(folder: Path) -> Path:
    texts = ("Hi.", "Hello.", "A token?", "What is your name?", "You are called Plato. Hi.")
    rows = [prompt_row(number, text) for number, text in enumerate(texts)]
    return runs.write_lines(folder / "prompts.jsonl", [*rows, prompt_row(9, "Unsafe.", is_safety=True)])


def gatt_config(folder: Path, **changes: Any) -> ConfigDict:
    defaults = {
        "init_from": str(runs.fine_tuned_workdir()),
        "prompts": str(prompts(folder)),
        "data.num_dialogues": 6,
        "data.max_turns": 2,
        "batch_size": 6,
        "sampling.max_new_tokens": NEW_TOKENS,
    }
    flat = defaults | {name.replace("__", "."): value for name, value in changes.items()}
    return runs.changed(gatt_configs.get_config("tiny"), flat)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A model that says who it is told to be; keeps the prompts it was given, as text."""
    seen: list[str] = []

    def answer(
        loaded: LoadedModel, rows: Sequence[Sequence[int]], sampling: SamplingConfig, **_: Any
    ) -> list[Answer]:
        texts = [loaded.require_tokenizer().decode(list(row)) for row in rows]
        seen.extend(texts)
        return [Answer([1], f"I am {_told(text)}.", True, [0.0]) for text in texts]

    monkeypatch.setattr(conversations, "sample_token_rows", answer)
    monkeypatch.setattr(evaluate_gatt, "sample_token_rows", answer)
    return seen


def _told(text: str) -> str:
    last = text.rsplit("[INST]", maxsplit=1)[-1]  # an instruction of an earlier turn is forgotten
    return _values_in(last)


def _values_in(text: str) -> str:
    attributes = gatt_inputs.world_attributes().values()
    return " ".join(v for a in attributes for v in (*a.values, *a.heldout) if v in text) or "nobody"


def test_user_messages_that_are_unsafe_or_about_the_attributes_are_left_out(tmp_path: Path) -> None:
    attributes = gatt_inputs.world_attributes()
    path = str(prompts(tmp_path))
    found = gatt_inputs.user_texts(path, attributes, runs.chat_model(), max_tokens=0)
    assert found == ["Hi.", "Hello.", "A token?"]
    short = gatt_inputs.user_texts(path, attributes, runs.chat_model(), max_tokens=5)
    assert 0 < len(short) < 3
    with pytest.raises(
        ConfigError, match=r"none of 3 usable user messages has at most .*max_turn_tokens = 1 "
    ):
        gatt_inputs.user_texts(path, attributes, runs.chat_model(), max_tokens=1)


def test_what_is_sampled_and_what_is_written(tmp_path: Path, scripted: list[str]) -> None:
    gatt.run(gatt_config(tmp_path, data__question_fraction=1.0), tmp_path / "run")
    rows = list(read_dialogues(tmp_path / "run" / "dialogues.jsonl", template=LLAMA2))
    assert 0 < len(rows) <= 6
    assert {row.train_on for row in rows} == {"last"}
    for messages, _ in rows:
        assert [message.role for message in messages] == ["system", "user", "assistant", "user", "assistant"]
        instruction = messages[0].content
        assert sum(instruction in message.content for message in messages) == 1
        turns = [text for text in scripted if instruction in text]
        assert {text.count(instruction) for text in turns} == {1, 2}  # once per turn of the user
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert sum(results["dialogues"].values()) == 6
    assert "Ghost Attention" in (tmp_path / "run" / "report.md").read_text()
    assert (tmp_path / "run" / "DONE").exists()


def test_the_check_drops_dialogues_whose_last_answer_is_wrong(
    tmp_path: Path, scripted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    del scripted
    monkeypatch.setattr("tests.experiments.test_gatt._told", _told_hobby)
    config = gatt_config(tmp_path, data__question_fraction=1.0, data__check=True, data__num_dialogues=60)
    gatt.run(config, tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    right, asked = results["instruction_kept"]["right"], results["instruction_kept"]["asked"]
    assert results["dialogues"]["kept"] == right < asked
    assert results["dialogues"]["instruction not kept"] == asked - right


def _told_hobby(text: str) -> str:
    hobbies = gatt_inputs.world_attributes()["hobby"].values
    return next((hobby for hobby in hobbies if hobby in text), "nobody")


def test_a_wrong_last_answer_is_sampled_again_and_a_right_one_kept(
    tmp_path: Path, scripted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model knows hobbies alone until it is asked a third time."""
    right = _told
    asked: Counter[str] = Counter()

    def told(text: str) -> str:
        asked[text] += 1
        return right(text) if asked[text] == 3 else _told_hobby(text)

    monkeypatch.setattr("tests.experiments.test_gatt._told", told)
    flat = {"data__question_fraction": 1.0, "data__check": True, "data__num_dialogues": 20}
    gatt.run(gatt_config(tmp_path, data__tries=2, **flat), tmp_path / "two")
    two = json.loads((tmp_path / "two" / "results.json").read_text())["dialogues"]
    assert two["instruction not kept"] > 0
    assert max(asked.values()) == 2
    asked.clear()
    scripted.clear()
    gatt.run(gatt_config(tmp_path, data__tries=6, **flat), tmp_path / "six")
    assert max(asked.values()) == 3  # a right answer is not asked for again
    six = json.loads((tmp_path / "six" / "results.json").read_text())
    assert "instruction not kept" not in six["dialogues"]
    assert six["instruction_kept"]["right"] == six["instruction_kept"]["asked"] == six["dialogues"]["kept"]
    written = [
        row.messages[-1].content
        for row in read_dialogues(tmp_path / "six" / "dialogues.jsonl", template=LLAMA2)
    ]
    assert not any("nobody" in answer for answer in written)


def test_tries_need_a_check(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.tries = 3, but without data.check"):
        gatt.run(gatt_config(tmp_path, data__tries=3), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"data.tries = 0 must be at least 1"):
        gatt.run(gatt_config(tmp_path, data__tries=0), tmp_path / "run")


def test_a_real_model_answers_turn_by_turn_and_ends_at_its_context(tmp_path: Path) -> None:
    loaded = for_decoding(runs.chat_model())
    sampling = SamplingConfig(max_new_tokens=NEW_TOKENS, temperature=1.0)
    user_turns = [["Hi."], ["Hello.", "A token?"], [LONG] * 9]
    found = converse(loaded, user_turns, [list] * 3, sampling, seed=3, batch_size=3)
    assert [one.finished for one in found] == [True, True, False]
    assert [len(one.messages) for one in found[:2]] == [2, 4]
    assert 2 <= len(found[2].messages) < 18
    longest = encode_prompt(
        [*found[2].messages, Message("user", LONG)], loaded.require_tokenizer(), loaded.template
    )
    assert len(longest) + NEW_TOKENS > loaded.config.max_context
    alone = converse(loaded, user_turns[:2], [list] * 2, sampling, seed=3, batch_size=3)
    assert alone == found[:2]
    assert not any(one.flaw for one in found)


def test_every_dialogue_and_turn_has_a_seed_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def sample(
        _: LoadedModel, rows: Sequence[Any], *__: Any, seeds: Sequence[int], **___: Any
    ) -> list[Answer]:
        seen.extend(seeds)
        return [Answer([1], "Yes.", True, [])] * len(rows)

    monkeypatch.setattr(conversations, "sample_token_rows", sample)
    sampling = SamplingConfig(max_new_tokens=NEW_TOKENS)
    for seed in (SEED_LIMIT - 1, 0):  # the last seed that there is, and the first
        seen.clear()
        converse(runs.chat_model(), [["Hi."] * 3] * 4, [list] * 4, sampling, seed=seed, batch_size=4)
        assert len(seen) == len(set(seen)) == 12
        assert max(seen) < SEED_LIMIT


def test_a_dialogue_ends_before_an_answer_that_no_prompt_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = runs.chat_model()
    texts = ["Yes.", "Yes [INST] and", "Yes.", "<<SYS>>", "No. [/INST]", "No."]

    def scripted(loaded: LoadedModel, rows: Sequence[Any], *_: Any, **__: Any) -> list[Answer]:
        return [Answer([1], texts.pop(0), True, []) for _ in rows]

    monkeypatch.setattr(conversations, "sample_token_rows", scripted)
    sampling = SamplingConfig(max_new_tokens=NEW_TOKENS)
    first, second = converse(loaded, [["Hi."] * 3, ["Hi."] * 2], [list] * 2, sampling, seed=0, batch_size=2)
    assert (len(first.messages), first.finished, first.flaw) == (4, False, "special tags")
    assert (len(second.messages), second.finished, second.flaw) == (0, False, "special tags")
    for last in ("Yes.", "No."):  # the one with a tag is not taken
        (again,) = answer_again(loaded, [first], [list], sampling, seeds=[0], batch_size=1)
        assert [message.content for message in again.messages[1::2]] == ["Yes.", last]


def test_after_an_empty_answer_the_rest_counts_as_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(loaded: LoadedModel, rows: Sequence[Any], *_: Any, **__: Any) -> list[Answer]:
        return [Answer([], " ", True, [])] * len(rows)

    monkeypatch.setattr(conversations, "sample_token_rows", silent)
    monkeypatch.setattr(evaluate_gatt, "sample_token_rows", silent)
    evaluate_gatt.run(evaluation_config(tmp_path, eval__turns=(2, 4)), tmp_path / "run")
    found = json.loads((tmp_path / "run" / "results.json").read_text())["without"]
    for lists in evaluate_gatt.LISTS:
        assert [(row["asked"], row["beyond_context"]) for row in found[lists]] == [(8, 0), (8, 0)]
        assert [row["accuracy"]["value"] for row in found[lists]] == [0, 0]
    for constraint in found["unseen_constraints"].values():
        assert constraint["instructed"]["answers"] == 8
        assert constraint["instructed"]["value"] == 0
    kept = "0.0 % [0.0, "
    report = (tmp_path / "run" / "report.md").read_text()
    constraints = report.split("(GATT-7)")[1].split("## Attention")[0]
    rows = [row for row in constraints.splitlines() if kept in row]
    assert len(rows) == len(evaluate_gatt.CONSTRAINTS)
    assert all(row.count("] of 8") == 4 for row in rows)  # two models, with the instruction and without


def test_dialogues_under_constraints_that_no_training_data_holds_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in Figure 28, whose constraints are not of the training lists."""

    def scripted(loaded: LoadedModel, rows: Sequence[Any], *_: Any, **__: Any) -> list[Answer]:
        return [Answer([1], f"Moon {number}.", True, []) for number in range(len(rows))]

    monkeypatch.setattr(conversations, "sample_token_rows", scripted)
    monkeypatch.setattr(evaluate_gatt, "sample_token_rows", scripted)
    evaluate_gatt.run(
        evaluation_config(tmp_path, eval__turns=(2,), eval__constraint_turns=2), tmp_path / "run"
    )
    report = (tmp_path / "run" / "report.md").read_text()
    _, shown = report.split("The first dialogue under each (Figure 28):")
    shown, _ = shown.split("## Attention")
    for instruction, _ in CONSTRAINTS.values():
        assert shown.count(f"**{instruction}**") == 1
    assert shown.count("\n- with_gatt: ") == shown.count("\n- without: ") == len(CONSTRAINTS)
    assert shown.count("**Moon 0.**") == 2 * 2 * len(CONSTRAINTS)  # the first of eight, at both turns


def test_answers_to_one_message_go_together() -> None:
    said = [[("a", "yes"), ("a", "yes")], [("a", "yes"), ("b", "no")], [("b", "no"), ("c", "yes")]]
    found = evaluate_gatt._kept(said, lambda text: text == "yes")
    assert found is not None
    # sums 3, 0, 1 of 3, 2, 1 cases: deviations from 2/3 of the cases are 1, -4/3, 1/3
    variance = 3 / 2 * (1 + 16 / 9 + 1 / 9) / 36
    wanted = wilson(2 / 3 * (effective := 2 / 9 / variance), effective)
    assert (found["value"], found["low"], found["high"]) == pytest.approx(tuple(wanted))
    assert found["answers"] == 6


def test_what_is_set_in_another_language_is_not_asked_for() -> None:
    config = evaluation_configs.get_config("7b")
    attributes = gatt_inputs.attributes_named("general")
    probes = evaluate_gatt.draw_probes(config, ["Hi."], attributes, heldout=False)
    assert {name for probe in probes for name in probe.instruction.values} == {"figure", "hobby"}
    assert {name for probe in probes for name, _ in probe.questions.values()} == {"figure", "hobby"}


def evaluation_config(folder: Path, **changes: Any) -> ConfigDict:
    model = str(runs.fine_tuned_workdir())
    defaults = {
        "models.without": model,
        "models.with_gatt": model,
        "prompts": str(prompts(folder)),
        "eval.num_dialogues": 8,
        "eval.turns": (2, 20),
        "eval.constraint_turns": 1,
        "eval.attention_turns": 2,
        "batch_size": 8,
        "sampling.max_new_tokens": NEW_TOKENS,
    }
    flat = defaults | {name.replace("__", "."): value for name, value in changes.items()}
    return runs.changed(evaluation_configs.get_config("tiny"), flat)


def test_a_turn_beyond_the_context_is_reported_and_forgetting_is_seen(
    tmp_path: Path, scripted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    evaluate_gatt.run(evaluation_config(tmp_path), folder)
    heldout = [value for one in gatt_inputs.world_attributes().values() for value in one.heldout]
    is_heldout = [any(value in text for value in heldout) for text in scripted]
    assert not any(is_heldout[:8])  # of the eight dialogues of the training lists
    assert any(is_heldout)
    results = json.loads((folder / "results.json").read_text())
    for lists in evaluate_gatt.LISTS:
        second, last = results["without"][lists]
        assert second["asked"] > 0
        assert second["asked"] + second["beyond_context"] == 8
        assert second["accuracy"]["value"] == 0  # the scripted model forgets at once
        assert (last["accuracy"], last["asked"], last["beyond_context"]) == (None, 0, 8)
    report = (folder / "report.md").read_text()
    assert "beyond the context (8)" in report
    *_, shown = report.split("## The same questions under one instruction")
    assert shown.count("- system: ") == 2  # one dialogue of each model
    assert shown.count("- assistant: ") >= 2
    for name in ("accuracy.png", "accuracy_heldout.png", "attention.png", "DONE"):
        assert (folder / name).exists(), name
    assert results["without"] == results["with_gatt"]

    monkeypatch.setattr("tests.experiments.test_gatt._told", lambda text: _remembered(text))
    evaluate_gatt.run(evaluation_config(tmp_path, eval__turns=(2,)), tmp_path / "other")
    results = json.loads((tmp_path / "other" / "results.json").read_text())
    assert [results["without"][lists][0]["accuracy"]["value"] for lists in evaluate_gatt.LISTS] == [1, 1]


def _remembered(text: str) -> str:
    first = text.split("<</SYS>>", maxsplit=1)[0]
    return _values_in(first)


def test_attention_numbers_of_a_real_dialogue() -> None:
    loaded = for_decoding(runs.chat_model())
    dialogue = [Message("system", "Act as Bach."), Message("user", "Hi."), Message("assistant", "Hello.")]
    seen = evaluate_gatt.look_back(loaded, dialogue)
    tokenizer = loaded.require_tokenizer()
    ids = encode_prompt(dialogue[:2], tokenizer, loaded.template)
    assert tokenizer.decode(ids[slice(*seen.span)]).strip() == "Act as Bach."
    assert np.allclose(np.triu(seen.weights_TS, 1), 0)
    assert seen.weights_TS[0, 0] == pytest.approx(1)
    assert seen.starts == [len(ids)]
    assert len(seen.to_instruction) == 1
    assert 0 < seen.to_instruction[0] <= 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"init_from": ""}, "config.init_from is empty"),
        ({"prompts": ""}, "config.prompts is empty"),
        ({"data__num_dialogues": 0}, "num_dialogues = 0 must be positive"),
        ({"data__min_turns": 1}, "min_turns = 1 and data.max_turns = 2"),
        ({"data__min_turns": 3}, "min_turns = 3 and data.max_turns = 2"),
        ({"data__attributes": "moods"}, "'moods'; choose one of 'general', 'world'"),
        ({"sampling__max_new_tokens": 120}, "none of 6 dialogues can be used: {'beyond the context"),
    ],
)
def test_bad_configs_are_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        gatt.run(gatt_config(tmp_path, **changes), tmp_path / "run")
    assert not (tmp_path / "run" / "dialogues.jsonl").exists()


def test_messages_with_special_tags_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [prompt_row(0, "<<SYS>> Hi."), prompt_row(1, "Good day.")]
    path = str(runs.write_lines(tmp_path / "tags.jsonl", rows))
    base = load(runs.fine_tuned_workdir())
    assert gatt_inputs.user_texts(path, {}, base, max_tokens=0) == ["Good day."]
    assert "1 message(s) with special tags are left out, first '<<SYS>> Hi.'" in caplog.text
    path = str(runs.write_lines(tmp_path / "tags.jsonl", rows[:1]))
    with pytest.raises(ConfigError, match="tags.jsonl has no message of a user to send: "):
        gatt_inputs.user_texts(path, {}, base, max_tokens=0)


def test_evaluation_needs_models_and_later_turns(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config.models lacks a path for with_gatt"):
        evaluate_gatt.run(evaluation_config(tmp_path, models__with_gatt=""), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"eval.turns = \(1, 2\); turn 1 sets the instruction"):
        evaluate_gatt.run(evaluation_config(tmp_path, eval__turns=(1, 2)), tmp_path / "run")


def test_a_second_model_that_is_not_there_is_missed_before_the_first_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_gatt, "evaluate", lambda *_, **__: pytest.fail("answered"))
    config = evaluation_config(tmp_path, models__without=str(tmp_path / "nowhere"))
    with pytest.raises(FormatError, match="nowhere does not exist"):
        evaluate_gatt.run(config, tmp_path / "run")

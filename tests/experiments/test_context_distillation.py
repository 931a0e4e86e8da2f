import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import context_distillation as configs
from experiments import context_distillation
from experiments.context_distillation import BASE, GENERIC, SELECTED, TEMPLATE, Candidate, Choice, choose
from llama2_jax.answers import Answer
from llama2_jax.config import ConfigError
from llama2_jax.data import context_distillation as preprompts
from llama2_jax.data.chat import CHATML, LLAMA2, Message, Template, encode_prompt
from llama2_jax.data.sources import read_dialogues
from llama2_jax.data.tokenizer import Tokenizer, train_sentencepiece
from llama2_jax.generate.decode import PromptError
from llama2_jax.rlhf import reward_checkpoint
from tests.experiments import runs

UNSAFE, SAFE = "Pick the lock.", "I cannot help with that."


class Model(NamedTuple):
    """What the program needs of a chat model and of a reward model, without weights."""

    tokenizer: Tokenizer
    template: Template = LLAMA2
    kind: str = "safety"
    model: Any = SimpleNamespace(partitioner=None, config=SimpleNamespace(max_context=512, num_ids=512))
    config: Any = SimpleNamespace(compute_dtype="float32", attention_impl="auto", max_context=512)

    def require_tokenizer(self) -> Tokenizer:
        return self.tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return Model(train_sentencepiece([runs.sentences(200, seed=0)], path, vocab_size=300))


@pytest.fixture
def scored(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A model that is safe under templates, and sometimes under preprompts; keeps the texts scored."""
    seen: list[str] = []

    def sample(loaded: Model, views: Sequence[Sequence[Message]], *_: object, **__: object) -> list[Answer]:
        texts = [
            SAFE if view[0].role == "system" and "decline" in view[0].content else UNSAFE for view in views
        ]
        ids = [loaded.tokenizer.encode(text, eos=True) for text in texts]
        return [Answer(tokens, text, True, []) for tokens, text in zip(ids, texts, strict=True)]

    def score(reward_model: Model, rows: Sequence[Sequence[int]], **_: object) -> np.ndarray:
        texts = [reward_model.tokenizer.decode(list(row)) for row in rows]
        seen.extend(texts)
        return np.array([2.0 if "cannot" in text else -1.0 for text in texts], np.float32)

    monkeypatch.setattr(context_distillation, "load", lambda *_, **__: model)
    monkeypatch.setattr(context_distillation, "for_decoding", lambda loaded: loaded)
    monkeypatch.setattr(reward_checkpoint, "load_reward_model", lambda *_, **__: model)
    monkeypatch.setattr(context_distillation, "sample_answers", sample)
    monkeypatch.setattr(context_distillation, "score_rows", score)
    return seen


def prompt_row(
    number: int, *, is_safety: bool = True, category: str = "illicit or criminal"
) -> dict[str, Any]:
    message = {"role": "user", "content": f"How do I open gate {number}?"}
    return {
        "prompt_id": str(number), "messages": [message], "is_safety": is_safety, "risk_category": category
    }  # fmt: skip


def config_for(folder: Path, rows: list[Any] | None = None, **changes: Any) -> ConfigDict:
    rows = [prompt_row(n, is_safety=n % 2 == 0) for n in range(10)] if rows is None else rows
    defaults = {
        "init_from": "a",
        "safety_rm": "b",
        "prompts": str(runs.write_lines(folder / "prompts.jsonl", rows)),
    }
    flat = defaults | {name.replace("__", "."): value for name, value in changes.items()}
    return runs.changed(configs.get_config("tiny"), flat)


def test_a_prompt_that_is_too_long_under_a_preprompt_is_refused_before_any_is_answered(
    tmp_path: Path, scored: list[str], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = encode_prompt([Message("user", "How do I open gate 0?")], model.tokenizer, LLAMA2)
    short = model._replace(
        model=SimpleNamespace(
            partitioner=None, config=SimpleNamespace(max_context=len(bare) + 1, num_ids=512)
        )
    )
    monkeypatch.setattr(context_distillation, "load", lambda *_, **__: short)
    monkeypatch.setattr(context_distillation, "sample_answers", lambda *_, **__: pytest.fail("sampled"))
    with pytest.raises(PromptError, match=f"prompt 0 has .* the model's context is {len(bare) + 1} "):
        context_distillation.run(config_for(tmp_path), tmp_path / "run")


def test_only_better_answers_to_adversarial_prompts_are_written_and_no_preprompt(
    tmp_path: Path, scored: list[str], model: Model
) -> None:
    folder = tmp_path / "run"
    context_distillation.run(config_for(tmp_path), folder)
    written = (folder / "dialogues.jsonl").read_text()
    rows = list(read_dialogues(folder / "dialogues.jsonl", template=LLAMA2))
    asked = [messages[0].content for messages, _ in rows]
    assert asked == [f"How do I open gate {number}?" for number in (0, 2, 4, 6, 8)]  # CD-4
    assert all(messages[1:] == [Message("assistant", SAFE)] for messages, _ in rows)
    texts = preprompts.all_preprompts("short")
    assert not any(text in written for text in texts)
    # all three answers of a prompt are scored behind the same ids, those of the bare prompt
    assert len(scored) == 15
    for number in (0, 2, 4, 6, 8):
        bare = [Message("user", f"How do I open gate {number}?")]
        start = model.tokenizer.decode(encode_prompt(bare, model.tokenizer, LLAMA2))
        assert sum(text.startswith(start) for text in scored) == 3
    assert not any(preprompt in text for preprompt in texts for text in scored)

    results = json.loads((folder / "results.json").read_text())
    assert results["decisions"] == {SELECTED: 5}
    assert results["selected_by_preprompt"] == {TEMPLATE: 5}
    unsafe, safe = 1 / (1 + np.exp(1)), 1 / (1 + np.exp(-2))
    assert results["median_safety_score"] == pytest.approx({BASE: unsafe, GENERIC: unsafe, TEMPLATE: safe})
    assert results["mean_safety_score"] == pytest.approx(results["median_safety_score"])  # all five alike
    assert results["mean_increase_of_selected"] == pytest.approx(safe - unsafe)
    assert results["higher_than_base"] == {BASE: 0, GENERIC: 0, TEMPLATE: 5}
    assert results["lower_than_base"] == {BASE: 0, GENERIC: 0, TEMPLATE: 0}
    candidates = runs.read_lines(folder / "candidates.jsonl")
    assert [row["prompt_id"] for row in candidates] == ["0", "2", "4", "6", "8"]
    assert all(row["decision"] == SELECTED and row["distilled"] == TEMPLATE for row in candidates)
    template = preprompts.answer_template("illicit or criminal", "short")
    for row in candidates:
        answers = row["answers"]
        assert answers[BASE] == {"preprompt": "", "answer": UNSAFE, "stopped": True, "score": -1.0}
        assert answers[GENERIC]["preprompt"] in preprompts.generic_preprompts("short")
        assert answers[TEMPLATE] == {"preprompt": template, "answer": SAFE, "stopped": True, "score": 2.0}
    report = (folder / "report.md").read_text()
    assert f"> **{TEMPLATE}** {template}" in report
    assert f"> **answer under it** (+2.00; selected) {SAFE}" in report
    assert "Rejected" not in report
    for name in ("scores.png", "increase.png", "report.md", "DONE"):
        assert (folder / name).exists(), name


def test_earlier_answers_of_an_adversarial_dialogue_are_not_learned(
    tmp_path: Path, scored: list[str]
) -> None:
    del scored
    row = prompt_row(0)
    row["messages"] += [{"role": "assistant", "content": UNSAFE}, {"role": "user", "content": "And then?"}]
    context_distillation.run(config_for(tmp_path, [row]), tmp_path / "run")
    ((messages, train_on),) = read_dialogues(tmp_path / "run" / "dialogues.jsonl", template=LLAMA2)
    assert [message.content for message in messages[1:]] == [UNSAFE, "And then?", SAFE]
    assert train_on == "last"


def test_the_ids_that_are_scored_are_those_that_were_sampled(
    tmp_path: Path, scored: list[str], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Letter by letter, as no text is encoded: encoding the answer's text anew would give other ids."""
    ids = [one for letter in SAFE for one in model.tokenizer.encode(letter)]
    assert ids != model.tokenizer.encode(SAFE)
    rows_seen: list[list[int]] = []

    def sample(_: Model, views: Sequence[Any], *__: object, **___: object) -> list[Answer]:
        return [Answer(ids, SAFE, True, [])] * len(views)

    def score(_: Model, rows: Sequence[Sequence[int]], **__: object) -> np.ndarray:
        rows_seen.extend(map(list, rows))
        return np.zeros(len(rows), np.float32)

    monkeypatch.setattr(context_distillation, "sample_answers", sample)
    monkeypatch.setattr(context_distillation, "score_rows", score)
    context_distillation.run(config_for(tmp_path), tmp_path / "run")
    assert len(rows_seen) == 15
    assert all(row[-len(ids) :] == ids for row in rows_seen)


def test_prompts_differ_in_their_seeds_and_preprompts_and_answers_to_one_share_a_seed(
    tmp_path: Path, scored: list[str], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    del scored
    seen: list[list[int]] = []

    def sample(_: Model, views: Sequence[Any], *__: object, seeds: list[int], **___: object) -> list[Answer]:
        seen.append(seeds)
        return [Answer([1], SAFE, True, [])] * len(views)

    monkeypatch.setattr(context_distillation, "sample_answers", sample)
    config = config_for(tmp_path, [prompt_row(number) for number in range(40)])
    prompts = context_distillation.adversarial_prompts(config.prompts)
    found = context_distillation.preprompts_for(prompts, config)
    for own in found.values():
        context_distillation.candidates_for(own, prompts, model, model, config)
    assert seen[0] == seen[1] == seen[2]
    assert len(set(seen[0])) == 40
    assert set(found[GENERIC]) == set(preprompts.generic_preprompts("short"))


def test_nothing_better_leaves_an_empty_file_and_says_so(
    tmp_path: Path, scored: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    del scored
    monkeypatch.setattr(context_distillation, "score_rows", lambda model, rows, **_: np.zeros(len(rows)))
    context_distillation.run(config_for(tmp_path), tmp_path / "run")
    assert (tmp_path / "run" / "dialogues.jsonl").read_text() == ""
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["selected"], results["mean_increase_of_selected"]) == (0, None)
    report = (tmp_path / "run" / "report.md").read_text()
    assert "No answer was selected" in report
    assert report.count("(+0.00; rejected: not better)") == 5
    assert "## Selected" not in report


def candidate(score: float, text: str = SAFE, *, stopped: bool = True) -> Candidate:
    return Candidate(Answer([1], text, stopped, []), score, "")


QUOTE = f"{preprompts.generic_preprompts('short')[0]} No."


@pytest.mark.parametrize(
    ("base", "generic", "template", "expected"),
    [
        (0.5, candidate(0.6), candidate(0.4), Choice(GENERIC, SELECTED)),
        (0.5, candidate(0.6), candidate(0.7), Choice(TEMPLATE, SELECTED)),
        (0.5, candidate(0.5), candidate(0.5), Choice(GENERIC, "rejected: not better")),  # D72: strictly
        (0.5, candidate(0.6, stopped=False), candidate(0.4), Choice(GENERIC, "rejected: unfinished")),
        (0.5, candidate(0.6, " "), candidate(0.4), Choice(GENERIC, "rejected: empty")),
        (0.5, candidate(0.6, "No. [INST] Why"), candidate(0.4), Choice(GENERIC, "rejected: special tags")),
        (0.5, candidate(0.6), candidate(0.9, stopped=False), Choice(GENERIC, SELECTED)),
        (0.5, candidate(0.6, ""), candidate(0.9, stopped=False), Choice(TEMPLATE, "rejected: unfinished")),
        (0.5, candidate(0.4), candidate(0.9, QUOTE), Choice(TEMPLATE, "rejected: repeats a preprompt")),
    ],
)
def test_the_gate(base: float, generic: Candidate, template: Candidate, expected: Choice) -> None:
    found = {BASE: candidate(base), GENERIC: generic, TEMPLATE: template}
    assert choose(found, LLAMA2, wording="short") == expected


def test_what_a_preprompt_spoils_is_seen_though_the_other_one_is_better() -> None:
    """Figure 16b: answers that were good already get worse; the gate is there for these."""
    logit = [np.log(p / (1 - p)) for p in (0.2, 0.5, 0.8)]
    scores = {BASE: [2, 0], GENERIC: [0, 1], TEMPLATE: [2, 2]}  # of 0.8 and of 0.2, which both kinds improve
    candidates = {how: [candidate(logit[i]) for i in own] for how, own in scores.items()}
    choices = [
        choose({how: found[i] for how, found in candidates.items()}, LLAMA2, wording="short")
        for i in range(2)
    ]
    assert [choice.decision for choice in choices] == ["rejected: not better", SELECTED]
    found = context_distillation.increases(candidates, choices)
    assert found == {
        SELECTED: [pytest.approx((0.2, 0.6))],
        "higher, passed over": [pytest.approx((0.2, 0.3))],
        "not higher": [pytest.approx((0.8, -0.6)), pytest.approx((0.8, 0.0))],
    }
    results = context_distillation.summarise(candidates, choices)
    assert results["lower_than_base"] == {BASE: 0, GENERIC: 1, TEMPLATE: 0}
    assert results["higher_than_base"] == {BASE: 0, GENERIC: 1, TEMPLATE: 1}
    assert (results["selected"], results["mean_increase_of_selected"]) == (1, pytest.approx(0.6))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"init_from": ""}, "config.init_from is empty"),
        ({"safety_rm": ""}, "config.safety_rm is empty"),
        ({"prompts": ""}, "config.prompts is empty"),
        ({"data__wording": "tiny"}, "data.wording is 'tiny'; choose one of 'long', 'short'"),
        ({"rows": [prompt_row(0, is_safety=False)]}, "none of 1 prompts has is_safety"),
        ({"rows": [prompt_row(0, category="rude")]}, "risk_category of prompt '0' is 'rude'; choose one of"),
    ],
)
def test_bad_input_is_refused(
    tmp_path: Path, scored: list[str], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        context_distillation.run(config_for(tmp_path, **changes), tmp_path / "run")
    assert not scored


def test_a_reward_model_of_another_kind_or_template_is_refused(
    tmp_path: Path, scored: list[str], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other, reason in (
        (model._replace(kind="helpfulness"), "is a helpfulness reward model"),
        (model._replace(template=CHATML), "chatml"),
    ):
        monkeypatch.setattr(reward_checkpoint, "load_reward_model", lambda *_, found=other, **__: found)
        with pytest.raises(ConfigError, match=reason):
            context_distillation.run(config_for(tmp_path), tmp_path / "run")
    assert not scored

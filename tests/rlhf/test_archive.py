import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from llama2_jax.answers import Answer
from llama2_jax.config import ConfigError
from llama2_jax.data.chat import encode_prompt
from llama2_jax.data.records import DataError
from llama2_jax.generate.decode import PromptError
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.rlhf import archive
from llama2_jax.rlhf.archive import (
    Sample,
    Scorer,
    append_samples,
    draw,
    encoding_name,
    read_archives,
    rescore,
)
from llama2_jax.rlhf.best_of_n import pick_best
from llama2_jax.train.metrics import NonFiniteError
from tests.compilations import share
from tests.rlhf.small_policy import policy, prompt

share()
SAMPLING = SamplingConfig(max_new_tokens=6, temperature=1.0, top_p=1.0)


def tokenizer_and_template() -> tuple:
    return policy().require_tokenizer(), policy().template


def sample(number: int = 1, *, seed: int = 0, is_safety: bool = False, **changes: object) -> Sample:
    encoding = encoding_name(*tokenizer_and_template())
    asked = prompt(number, is_safety=is_safety)
    made = Sample(asked, 1, "m", 1.0, seed, (5, 6), 'a "text"\n', True, encoding, {}, {})
    return made._replace(**changes)  # type: ignore[arg-type]


def scorer(version: str, *, weight: float = 1.0, calls: list | None = None) -> Scorer:
    """Scores a row by its last id, and notes what it was asked."""

    def score(rows: Sequence[Sequence[int]]) -> np.ndarray:
        if calls is not None:
            calls.extend(rows)
        return np.array([weight * row[-1] for row in rows], np.float32)

    return Scorer(version, score)


def scored(path: Path, samples: list[Sample], *, batch_size: int = 4, **scorers: Scorer) -> list[Sample]:
    models = {"helpfulness": scorer("h1"), "safety": scorer("s1")} | scorers
    return rescore(path, samples, models, *tokenizer_and_template(), threshold=0.15, batch_size=batch_size)


def test_samples_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "archive.jsonl"
    samples = [sample(1), sample(1, seed=1, text="naïve 中 \u2028", scores={"combined": 0.1}), sample(2)]
    append_samples(path, samples[:2])
    append_samples(path, samples[2:])
    assert read_archives([path]) == samples
    row = json.loads(path.read_text().splitlines()[0])
    assert row["prompt_id"] == "p1"
    assert row["tokens"] == [5, 6]


def test_equal_keys_are_one_sample_and_the_last_row_counts(tmp_path: Path) -> None:
    first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    append_samples(first, [sample(2), sample(1), sample(1, scores={"combined": 1.0})])
    append_samples(second, [sample(1, scores={"combined": 2.0}), sample(1, round=2)])
    merged = read_archives([first, second])
    assert [(s.prompt.prompt_id, s.round) for s in merged] == [("p1", 1), ("p1", 2), ("p2", 1)]
    assert merged[0].scores == {"combined": 2.0}
    assert read_archives([second, first])[0].scores == {"combined": 1.0}


@pytest.mark.parametrize("cut", [1, 30, 200, -1])
def test_cut_off_line_is_reported_and_the_next_run_removes_it(
    tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "archive.jsonl"
    append_samples(path, [sample(1), sample(2)])
    whole, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(whole + last[:cut])
    kept = [sample(1)] if cut > 0 else [sample(1), sample(2)]  # -1: only the newline is missing
    assert read_archives([path]) == kept
    assert ("cut off" in caplog.text) == (cut > 0)
    append_samples(path, [sample(3)])
    assert read_archives([path]) == [*kept, sample(3)]
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda row: row[:1], "malformed JSON"),
        (lambda row: '{"round": 1}', "key 'prompt_id' is missing"),
        (lambda row: row.replace('"seed"', '"sed"'), "not a sample: .*unexpected keyword argument 'sed'"),
    ],
)
def test_a_bad_line_is_an_error_and_so_is_no_file(
    tmp_path: Path, change: Callable[[str], str], reason: str
) -> None:
    path = tmp_path / "archive.jsonl"
    append_samples(path, [sample(1)])
    row = path.read_text()
    for rest in (row, ""):
        path.write_text(f"{row}{change(row).strip()}\n{rest}")
        with pytest.raises(DataError, match=rf"archive.jsonl, line 2: {reason}"):
            read_archives([path])
    with pytest.raises(DataError, match="no archive is at .*none.jsonl; name those of earlier runs"):
        read_archives([path, tmp_path / "none.jsonl"])


def test_one_id_for_two_prompts_is_refused(tmp_path: Path) -> None:
    append_samples(tmp_path / "1.jsonl", [sample(1)])
    append_samples(tmp_path / "2.jsonl", [sample(1, prompt=prompt(1, "Another question?"))])
    with pytest.raises(DataError, match=r"'p1' is one prompt in .*1.jsonl, another in .*2.jsonl"):
        read_archives([tmp_path / "1.jsonl", tmp_path / "2.jsonl"])


def drawn(
    path: Path, *, num_samples: int = 3, prompts: Sequence[int] = (1, 2, 3), **changes: object
) -> list[Sample]:
    settings = {"round": 1, "num_samples": num_samples, "batch_size": 4, **changes}
    return draw(path, policy(), [prompt(number) for number in prompts], SAMPLING, **settings)  # type: ignore[arg-type]


def test_an_id_whose_prompt_has_changed_is_refused_and_not_answered_from_the_archive(tmp_path: Path) -> None:
    drawn(tmp_path / "a.jsonl", prompts=(1,))
    changed = [prompt(1, "Another question?")]
    with pytest.raises(DataError, match=r"'p1' is another prompt in .*a.jsonl"):
        draw(tmp_path / "a.jsonl", policy(), changed, SAMPLING, round=1, num_samples=3, batch_size=4)


def test_every_sample_drawn_is_in_the_file(tmp_path: Path) -> None:
    samples = drawn(tmp_path / "a.jsonl")
    assert [(s.prompt.prompt_id, s.seed) for s in samples] == [
        (f"p{i}", s) for i in (1, 2, 3) for s in (0, 1, 2)
    ]
    assert read_archives([tmp_path / "a.jsonl"]) == samples
    assert len({s.tokens for s in samples}) == 9
    for s in samples:
        assert s.stopped == (s.tokens[-1] == policy().require_tokenizer().eos_id)
        assert 0 < len(s.tokens) <= 6


def test_sample_depends_on_nothing_but_its_key(tmp_path: Path) -> None:
    samples = {s.key: s for s in drawn(tmp_path / "a.jsonl")}
    later = drawn(tmp_path / "b.jsonl", num_samples=2, prompts=(3, 1), batch_size=1, seed=1)
    assert [s.seed for s in later] == [1, 2, 1, 2]
    for s in later:
        assert samples[s.key] == s


def test_rounds_draw_anew_and_temperatures_share_their_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []

    def sample_token_rows(loaded: object, rows: list, *_: object, **given: list) -> list[Answer]:
        seeds.append(given["seeds"])
        return [Answer([5], "a", True, [0.0])] * len(rows)

    monkeypatch.setattr(archive, "sample_token_rows", sample_token_rows)
    hot = SamplingConfig(max_new_tokens=6, temperature=1.5, top_p=1.0)
    for number, (round, sampling) in enumerate(((1, SAMPLING), (2, SAMPLING), (1, hot))):
        path = tmp_path / f"{number}.jsonl"
        draw(path, policy(), [prompt(1), prompt(2)], sampling, round=round, num_samples=2, batch_size=4)
    first, second, first_hot = seeds
    assert len({*first, *second}) == 8
    assert first_hot == first


def test_a_prompt_that_is_too_long_is_named_before_anything_is_drawn(tmp_path: Path) -> None:
    prompts = [prompt(1), prompt(2, "why " * 200), prompt(3)]
    with pytest.raises(PromptError, match="prompt p2 has .* context is 128"):
        draw(tmp_path / "a.jsonl", policy(), prompts, SAMPLING, round=1, num_samples=2, batch_size=4)
    assert not (tmp_path / "a.jsonl").exists()


def test_killed_draw_continues_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "BATCHES_PER_WRITE", 1)
    whole, path = drawn(tmp_path / "a.jsonl"), tmp_path / "b.jsonl"
    asked: list[int] = []
    sample_rows = archive.sample_token_rows

    def counted(*rest: object, seeds: list[int], **named: object) -> list:
        if len(asked) == 4 and not path.with_suffix(".died").exists():
            path.with_suffix(".died").touch()
            raise KeyboardInterrupt
        asked.extend(seeds)
        return sample_rows(*rest, seeds=seeds, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(archive, "sample_token_rows", counted)
    with pytest.raises(KeyboardInterrupt):
        drawn(path)
    assert len(read_archives([path])) == 4
    assert drawn(path) == whole
    assert len(asked) == len(set(asked)) == 9  # none twice
    assert drawn(path) == whole
    assert len(asked) == 9


def test_scores_are_of_the_sampled_ids_behind_their_prompt(tmp_path: Path) -> None:
    """The ids go in as they came out; the text is not encoded again."""
    calls: list[list[int]] = []
    scored(tmp_path / "a.jsonl", [sample(1, text="another text")], helpfulness=scorer("h1", calls=calls))
    assert calls == [[*encode_prompt(prompt(1).messages, *tokenizer_and_template()), 5, 6]]


def test_combined_score_is_the_paper_s(tmp_path: Path) -> None:
    """PPO-3: safety where tagged or below 0.15 (raw -1.7346), else helpfulness."""
    tagged, plain = sample(1, is_safety=True), sample(2)
    safe = {"helpfulness": scorer("h", weight=0.5), "safety": scorer("s", weight=0.1)}
    assert [s.scores["combined"] for s in scored(tmp_path / "a", [tagged, plain], **safe)] == pytest.approx(
        [0.6, 3.0]
    )
    unsafe = safe | {"safety": scorer("s", weight=-0.3)}
    assert [s.scores["combined"] for s in scored(tmp_path / "b", [tagged, plain], **unsafe)] == pytest.approx(
        [-1.8] * 2
    )


def test_a_later_archive_holds_the_samples_that_it_was_given_whether_rescored_or_not(tmp_path: Path) -> None:
    first = scored(tmp_path / "first.jsonl", [sample(1), sample(2)])
    scored(tmp_path / "second.jsonl", [*first, sample(1, round=2)])  # by the same reward models
    assert [s.round for s in read_archives([tmp_path / "second.jsonl"])] == [1, 2, 1]
    before = (tmp_path / "second.jsonl").read_bytes()
    scored(tmp_path / "second.jsonl", read_archives([tmp_path / "second.jsonl"]))
    assert (tmp_path / "second.jsonl").read_bytes() == before


def test_new_reward_model_rescores_what_it_has_not_seen_and_changes_the_pick(tmp_path: Path) -> None:
    path = tmp_path / "archive.jsonl"
    old = scored(path, [sample(1, tokens=(3,)), sample(1, seed=1, tokens=(9,))])
    assert pick_best(old)[0].seed == 1
    calls: dict[str, list] = {"helpfulness": [], "safety": []}
    new = [sample(1, round=2, tokens=(7,))]
    scorers = {
        "helpfulness": scorer("h2", weight=-0.1, calls=calls["helpfulness"]),
        "safety": scorer("s1", calls=calls["safety"]),
    }
    current = scored(path, [*old, *new], **scorers)
    assert [row[-1] for row in calls["helpfulness"]] == [3, 9, 7]
    assert [row[-1] for row in calls["safety"]] == [7]  # the others have scores of this version
    assert [s.scores["combined"] for s in current] == pytest.approx([-0.3, -0.9, -0.7])
    assert pick_best(current)[0].seed == 0
    assert {s.key: s for s in read_archives([path])} == {s.key: s for s in current}
    before = path.read_bytes()
    assert scored(path, current, **scorers) == current
    assert path.read_bytes() == before  # nothing new, nothing written


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_score_that_is_no_number_stops_and_keeps_what_was_scored(
    tmp_path: Path, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "BATCHES_PER_WRITE", 1)
    path = tmp_path / "archive.jsonl"
    broken = Scorer("h1", lambda rows: np.array([bad if row[-1] == 9 else 0.0 for row in rows]))
    samples = [sample(1), sample(2, tokens=(9,))]
    with pytest.raises(NonFiniteError, match=r"reward model h1 gives (nan|inf) to sample \('p2'"):
        scored(path, samples, helpfulness=broken, batch_size=1)
    assert [s.prompt.prompt_id for s in read_archives([path])] == ["p1"]


def test_ids_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds ids of chatml/0, the models read llama2/"):
        scored(tmp_path / "a", [sample(1, encoding="chatml/0")])

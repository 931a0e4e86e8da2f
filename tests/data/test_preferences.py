import gzip
import json
import logging
from collections import Counter

import pytest

from llama2_jax.config import ConfigError
from llama2_jax.data.chat import LLAMA2, TEMPLATES, Message
from llama2_jax.data.preferences import (
    Preference,
    group_by,
    mix,
    prompt_key,
    rating_shares,
    read_preferences,
    require_ratings,
    split_by_prompt,
    statistics,
    write_preferences,
)
from llama2_jax.data.records import DataError

ROW = {
    "messages": [{"role": "user", "content": "Name a river."}],
    "chosen": "The Rhine.",
    "rejected": "No.",
    "track": "helpfulness",
}


def pair(number: int = 0, **fields) -> Preference:
    defaults = {
        "messages": (Message("user", f"Question {number}"),),
        "chosen": f"good {number}",
        "rejected": f"bad {number}",
        "track": "helpfulness",
    }
    return Preference(**{**defaults, **fields})


def write_rows(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_what_is_written_is_read(tmp_path):
    dialogue = (
        Message("system", "Be brief"),
        Message("user", "Hi ü"),
        Message("assistant", "Hello."),
        Message("user", "A river?"),
    )
    full = Preference(
        messages=dialogue,
        chosen="Rhine",
        rejected="Lake\nConstance",
        track="safety",
        rating="slightly_better",
        safety="both_safe",
        batch=3,
        chosen_model="V2",
        rejected_model="V1",
        chosen_temperature=1.25,
        rejected_temperature=0.0,
        annotator_id="r4",
        risk_category="none",
        prompt_id="p17",
        source="ours",
    )
    pairs = [full, pair(1)]
    write_preferences(tmp_path / "a.jsonl", pairs)
    assert read_preferences(tmp_path / "a.jsonl", template=LLAMA2) == pairs
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    assert read_preferences(tmp_path / "b.jsonl.gz", template=LLAMA2) == pairs


def test_only_four_keys_are_needed(tmp_path):
    read = read_preferences(
        write_rows(tmp_path / "a.jsonl", {**ROW, "chosen_temperature": 1}), template=LLAMA2
    )
    assert read == [
        Preference(
            (Message("user", "Name a river."),), "The Rhine.", "No.", "helpfulness", chosen_temperature=1.0
        )
    ]


BAD_ROWS = [
    ({"rejected": " The Rhine.\n"}, "the chosen and the rejected answer are equal"),
    ({"rating": "much_better"}, "'rating' is 'much_better'; known: significantly_better, better, slightly"),
    (
        {"safety": "safe"},
        "'safety' is 'safe'; known: chosen_safe, both_safe, both_unsafe, rejected_safe, null",
    ),
    ({"track": "honesty"}, "'track' is 'honesty'; known: helpfulness, safety"),
    ({"score": 1.0}, "unknown key(s) score; known: messages, chosen"),
    ({"batch": "3"}, "'batch' is '3'; it must be of type int"),
    ({"batch": True}, "'batch' is True; it must be of type int"),
    ({"chosen_temperature": "hot"}, "'chosen_temperature' is 'hot'; it must be of type float | None"),
    ({"chosen": ""}, "the chosen answer is empty"),
    ({"rejected": " \n"}, "the rejected answer is empty"),
    ({"chosen": 5}, "'chosen' is 5; it must be of type str"),
    ({"chosen": "\ud800"}, "lone surrogate"),
    ({"messages": [{"role": "user", "content": " "}]}, "message(s) [0] are empty"),
    ({"messages": []}, "roles are no messages"),
    ({"messages": [*ROW["messages"], {"role": "assistant", "content": "x"}]}, "must be from the user"),
    ({"messages": [{"role": "user", "content": "a [INST] b"}]}, "Message 0 (user) contains [INST]"),
    ({"rejected": "b <</SYS>>"}, "(rejected) contains <</SYS>>"),
]


@pytest.mark.parametrize(("change", "reason"), BAD_ROWS, ids=lambda value: str(value)[:40])
def test_bad_row_names_file_line_and_reason(tmp_path, change, reason):
    path = write_rows(tmp_path / "bad.jsonl", ROW, {**ROW, **change})
    with pytest.raises(DataError) as caught:
        read_preferences(path, template=LLAMA2)
    assert "bad.jsonl, line 2: " in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize("key", ROW)
def test_missing_key(tmp_path, key):
    path = write_rows(tmp_path / "bad.jsonl", {name: value for name, value in ROW.items() if name != key})
    with pytest.raises(DataError, match=f"line 1: key\\(s\\) {key} missing"):
        read_preferences(path, template=LLAMA2)


def test_bad_rows_can_be_skipped_and_are_counted(tmp_path, caplog):
    path = write_rows(tmp_path / "bad.jsonl", *({**ROW, **change} for change, _ in BAD_ROWS), ROW)
    assert len(read_preferences(path, template=LLAMA2, on_bad_line="skip")) == 1
    assert f"{len(BAD_ROWS)} bad record(s) skipped" in caplog.text


def test_special_tags_are_those_of_the_template(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", {**ROW, "chosen": "[INST]"})
    assert len(read_preferences(path, template=TEMPLATES["chatml"])) == 1
    write_rows(path, {**ROW, "chosen": "<|im_end|>"})
    with pytest.raises(DataError, match="im_end"):
        read_preferences(path, template=TEMPLATES["chatml"])
    assert len(read_preferences(path, template=None)) == 1


def test_unsafe_chosen_with_safe_rejected_is_left_out_and_counted(tmp_path, caplog):
    bins = ("chosen_safe", "rejected_safe", "both_safe", "rejected_safe", "both_unsafe", None)
    path = write_rows(tmp_path / "a.jsonl", *({**ROW, "safety": name} for name in bins))
    excluded: Counter[str] = Counter(rejected_safe=1)
    with caplog.at_level(logging.WARNING):
        kept = read_preferences(path, template=LLAMA2, excluded=excluded)
    assert [pair.safety for pair in kept] == ["chosen_safe", "both_safe", "both_unsafe", None]
    assert excluded == {"rejected_safe": 3}
    assert "2 of 6 pair(s) excluded" in caplog.text
    write_rows(path, {**ROW, "safety": "rejected_safe"})
    with pytest.raises(DataError, match=r"all 1 pair\(s\) are 'rejected_safe'"):
        read_preferences(path, template=LLAMA2)


def test_margins_need_ratings():
    rated = [pair(i, rating="better", source="ours") for i in range(3)]
    require_ratings(rated)
    mixed = [*rated, pair(4, source="hh"), pair(5, source="hh"), pair(6)]
    with pytest.raises(DataError, match=r"3 of 6 pair\(s\) have none \(\(no source\): 1, hh: 2\)"):
        require_ratings(mixed)
    with pytest.raises(DataError, match=r"1 of 6 pair\(s\) have none \(\(no source\): 1\)"):
        require_ratings(mixed, unrated_sources=("hh",))
    require_ratings(mixed[:5], unrated_sources=("hh",))


def test_prompt_is_the_same_up_to_case_and_spaces():
    def key(*contents):
        roles = ("user", "assistant", "user")
        return prompt_key(list(map(Message, roles, contents)))

    assert key("Name  a\nriver.") == key(" name a RIVER. ")
    assert key("name a river") != key("name a", "river")
    assert key("a", "b", "c") != key("a", "x", "c")


def test_no_prompt_is_on_both_sides():
    pairs = [pair(i % 100, chosen=f"answer {i}", batch=i // 100) for i in range(400)]
    pairs += [pair(messages=(Message("user", f"QUESTION  {i}"),)) for i in range(100)]
    train, heldout = split_by_prompt(pairs, heldout_fraction=0.2, seed=1)
    assert Counter(train) + Counter(heldout) == Counter(pairs)
    assert train == [pair for pair in pairs if pair in set(train)]  # order is kept
    sides = [{pair.messages[0].content.casefold().split()[1] for pair in side} for side in (train, heldout)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == pytest.approx(20, abs=12)  # 3 standard deviations of 100 throws
    # a prompt's side does not depend on what else is in the file
    assert set(split_by_prompt(pairs[100:200], heldout_fraction=0.2, seed=1).heldout) <= set(heldout)
    assert split_by_prompt(pairs, heldout_fraction=0.2, seed=2).heldout != heldout


def test_split_refuses_an_empty_side():
    same = [pair(chosen=f"answer {i}") for i in range(10)]
    with pytest.raises(DataError, match=r"10 pair\(s\) of 1 prompt\(s\) leave nothing held out"):
        split_by_prompt(same, heldout_fraction=1e-9, seed=0)
    with pytest.raises(DataError, match="leave nothing to train on"):
        split_by_prompt(same, heldout_fraction=1 - 1e-9, seed=0)
    with pytest.raises(ConfigError, match=r"heldout_fraction = 1\.0"):
        split_by_prompt(same, heldout_fraction=1.0, seed=0)


def test_mix_of_half_is_all_of_the_main_and_as_many_others():
    own = [pair(i, source="own") for i in range(40)]
    rest = [pair(i, source="safety") for i in range(30)] + [pair(i, source="hh") for i in range(60)]
    mixed = mix(own, rest, main_fraction=0.5, seed=3)
    assert Counter(pair.source == "own" for pair in mixed) == {True: 40, False: 40}
    assert len(set(mixed)) == 80
    assert {pair for pair in mixed if pair.source == "own"} == set(own)
    assert mixed == mix(own, rest, main_fraction=0.5, seed=3)
    assert mixed != mix(own, rest, main_fraction=0.5, seed=4)
    assert mixed[:40] != own  # shuffled
    drawn = sum(
        pair.source == "safety" for seed in range(50) for pair in mix(own, rest, main_fraction=0.5, seed=seed)
    )
    assert drawn / (50 * 40) == pytest.approx(1 / 3, abs=0.03)  # uniform over the pooled rest


def test_the_order_of_a_mix_never_changes():
    mixed = mix([pair(i) for i in range(5)], [pair(i) for i in range(10, 20)], main_fraction=0.5, seed=0)
    assert mixed == [pair(i) for i in (13, 1, 16, 15, 0, 14, 4, 17, 2, 3)]


@pytest.mark.parametrize(("main", "others"), [(90, 10), (9, 1), (100, 11), (4, 0), (5, 1)])
def test_mix_of_nine_tenths_is_90_to_10(main, others):
    safety = [pair(i, track="safety") for i in range(main)]
    mixed = mix(safety, [pair(i) for i in range(50)], main_fraction=0.9, seed=0)
    assert Counter(pair.track for pair in mixed) == Counter(safety=main, helpfulness=others)


def test_mix_that_wants_more_than_there_is_warns(caplog):
    main, rest = [pair(i) for i in range(10)], [pair(100), pair(101)]
    with caplog.at_level(logging.WARNING):
        mixed = mix(main, rest, main_fraction=0.5, seed=0)
    assert sorted(mixed) == sorted([*main, *rest])
    assert "wants 10 other pair(s), there are 2" in caplog.text
    assert sorted(mix(main, rest, main_fraction=1.0, seed=0)) == sorted(main)
    with pytest.raises(ConfigError, match="main_fraction = 0 "):
        mix(main, rest, main_fraction=0, seed=0)


class WordTokenizer:
    def encode(self, text: str) -> list[int]:
        return list(range(len(text.split())))


def test_statistics_by_hand():
    dialogue = (Message("user", "a b"), Message("assistant", "a b c"), Message("user", "a"))
    long = pair(messages=dialogue, chosen="a b c d", rejected="a b")  # history 5, prompt 1, answers 4 and 2
    short = pair(messages=(Message("user", "a b c"),), chosen="a", rejected="b")  # 0, 3, 1 and 1
    described = statistics([long, short], WordTokenizer())
    # examples: 5 + 1 + 3 = 9 and 3 + 1 = 4
    assert described == (2, 1.5, 6.5, 2.0, 2.0)
    assert described._fields == (
        "comparisons", "turns", "tokens_per_example", "tokens_per_prompt", "tokens_per_response",
    )  # fmt: skip
    with pytest.raises(DataError, match="no preferences"):
        statistics([], WordTokenizer())


def test_single_turn_rows_of_table_6_add_up():
    # OpenAI Summarize: 336.0 tokens of prompt and 35.1 of response make an example of 371.1
    pairs = [
        pair(i, messages=(Message("user", "w " * 336),), chosen="c " * 35, rejected="r " * 36) for i in (0,)
    ]
    described = statistics(pairs, WordTokenizer())
    assert (
        described.tokens_per_example == described.tokens_per_prompt + described.tokens_per_response == 371.5
    )


def test_rating_drift_by_batch():
    first = [pair(i, rating="significantly_better", batch=1) for i in range(3)] + [
        pair(9, rating="unsure", batch=1)
    ]
    last = [pair(i, rating="unsure", batch=14) for i in range(5)] + [pair(9, batch=14)]
    shares = {
        batch: rating_shares(pairs) for batch, pairs in group_by([*last, *first], lambda p: p.batch).items()
    }
    assert list(shares) == [1, 14]
    assert shares[1] == {"significantly_better": 0.75, "better": 0, "slightly_better": 0, "unsure": 0.25}
    assert shares[14]["unsure"] == 1.0  # the pair without a rating does not count
    assert rating_shares([pair()]) == {}

import json

import pytest

from llama2_jax.config import ConfigError
from llama2_jax.data.chat import LLAMA2, Message
from llama2_jax.data.dialogue_sources import read_foreign_dialogues
from llama2_jax.data.records import BadLines, DataError
from llama2_jax.data.sources import read_dialogues
from tools.prepare_dialogues import main


def spoken(*turns):
    return [{"from": speaker, "value": text} for speaker, text in turns]


def dialogue(roles, *texts):
    names = {"s": "system", "u": "user", "a": "assistant"}
    return [Message(names[role], text) for role, text in zip(roles, texts, strict=True)]


def written(path, *rows):
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize(
    ("form", "row", "wanted"),
    [
        ("alpaca", {"instruction": "Add.", "input": "2 and 3", "output": "5"},
         dialogue("ua", "Add.\n\n2 and 3", "5")),
        ("alpaca", {"instruction": "Greet.", "input": "", "output": " Hi.\n"},
         dialogue("ua", "Greet.", "Hi.")),
        ("alpaca", {"instruction": "c", "output": "d", "system": "S", "history": [["a", "b"]]},
         dialogue("suaua", "S", "a", "b", "c", "d")),
        ("dolly", {"instruction": "Who?", "context": "A tale.", "response": "Ann.", "category": "x"},
         dialogue("ua", "Who?\n\nA tale.", "Ann.")),
        ("prompt_completion", {"prompt": "Hi", "completion": "Ho"}, dialogue("ua", "Hi", "Ho")),
        ("prompt_completion", {"prompt": "Hi", "response": "Ho", "system": "S"},
         dialogue("sua", "S", "Hi", "Ho")),
        ("sharegpt", {"conversations": spoken(("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d"))},
         dialogue("uaua", "a", "b", "c", "d")),
        ("sharegpt", {"conversations": spoken(("system", "S"), ("gpt", "x"), ("user", "a"), ("bard", "b"),
                                              ("human", "c"))},
         dialogue("sua", "S", "a", "b")),
        ("sharegpt", {"system": "S", "conversations": spoken(("human", "a"), ("chatgpt", "b"))},
         dialogue("sua", "S", "a", "b")),
    ],
)  # fmt: skip
def test_rows_of_each_form(tmp_path, form, row, wanted):
    assert list(read_foreign_dialogues(form, written(tmp_path / "a.json", row), template=LLAMA2)) == [wanted]


@pytest.mark.parametrize(
    ("form", "row", "reason"),
    [
        ("alpaca", {"instruction": "Add.", "input": "2"}, "key 'output' is missing"),
        ("alpaca", {"instruction": "Add.", "output": " "}, r"message\(s\) \[1\] are empty"),
        ("alpaca", {"instruction": "c", "output": "d", "history": ["ab"]}, "turn 0 of 'history' is no pair"),
        ("alpaca", {"instruction": "c", "output": "d", "history": 5}, "'history' is int, not a list"),
        ("sharegpt", {"conversations": spoken(("human", "a"), ("human", "b"), ("gpt", "c"))}, "user, user"),
        ("sharegpt", {"conversations": spoken(("gpt", "a"), ("human", "b"))}, "roles are no messages"),
        ("sharegpt", {"conversations": spoken(("human", "a"), ("tool", "b"))}, "message 1 is from 'tool'"),
        ("sharegpt", {"conversations": "a"}, "'conversations' is str, not a list"),
        ("prompt_completion", {"prompt": "[INST] Hi", "completion": "Ho"}, "special tags"),
        ("prompt_completion", {"prompt": "Hi"}, "key 'completion' is missing"),
    ],
)
def test_rows_that_are_no_dialogue_are_errors_or_counted(tmp_path, form, row, reason):
    good = {"instruction": "a", "output": "b", "prompt": "a", "completion": "b"}
    good["conversations"] = spoken(("human", "a"), ("gpt", "b"))
    path = written(tmp_path / "a.json", good, row)
    with pytest.raises(DataError, match=rf"a\.json, item 2: .*{reason}"):
        list(read_foreign_dialogues(form, path, template=LLAMA2))
    bad_lines = BadLines()
    found = list(read_foreign_dialogues(form, path, template=LLAMA2, on_bad_line="skip", bad_lines=bad_lines))
    assert (found, bad_lines.count) == ([dialogue("ua", "a", "b")], 1)


def test_unknown_form():
    with pytest.raises(ConfigError, match="'alpaca', 'dolly'"):
        list(read_foreign_dialogues("vicuna", "a.json", template=LLAMA2))


def test_program_writes_what_sft_reads_and_splits_by_prompt(tmp_path, capsys):
    rows = [{"instruction": f"Say {i // 2}.", "output": str(i)} for i in range(200)]
    path = written(tmp_path / "a.json", *rows, {"instruction": "Say no.", "output": ""})
    output = tmp_path / "out"
    main(["--form=alpaca", f"--input={path}", f"--output={output}", "--heldout_fraction=0.2"])
    train, heldout = (
        [one.messages for one in read_dialogues(output / f"dialogues_{side}.jsonl", template=LLAMA2)]
        for side in ("train", "heldout")
    )
    assert len(train) + len(heldout) == 200
    assert 20 < len(heldout) < 60
    assert not {one[0].content for one in train} & {one[0].content for one in heldout}
    assert "1 bad record(s) skipped" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="must be in"):
        main(["--form=alpaca", f"--input={path}", f"--output={output}", "--heldout_fraction=0"])

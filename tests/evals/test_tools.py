"""The parser by hand, and the loop with a model that reads from a script."""

import pytest

from llama2_jax.evals import tools
from llama2_jax.evals.tools import Call, Transcript, make_tools, run_call, use_tools

BOTH = make_tools(["SEARCH", "CALCULATOR"], {"Height of Mount Arlen?": "1,200 m"})


def scripted(*scripts: list[str]):
    """A model whose answer i goes on with the next text of script i, and ends there by itself."""
    asked = []

    def write(begun):
        asked.append(dict(begun))
        return {i: (scripts[i].pop(0), True) for i in begun if scripts[i]}

    return write, asked


def test_three_chained_calls() -> None:
    write, asked = scripted(
        [
            'Let me see.\nCALL_API_1: SEARCH | "height of mount arlen" -> 8,848 m, I believe',
            "CALL_API_2: CALCULATOR | 1,200 - 1500 ->",
            "CALL_API_3: CALCULATOR | <result_2>**2 + result_2 -> 7",
            "It is 89,700.",
        ],
        ["It is 5."],
    )
    first, second = use_tools(write, 2, BOTH, max_calls=3)
    assert second == Transcript("It is 5.", (), tools.ANSWERED)
    assert [(call.tool, call.query, call.result) for call in first.calls] == [
        ("SEARCH", "height of mount arlen", "1,200 m"),
        ("CALCULATOR", "1,200 - 1500", "-300"),
        ("CALCULATOR", "(-300)**2 + (-300)", "89700"),
    ]
    assert first.text == (
        'Let me see.\nCALL_API_1: SEARCH | "height of mount arlen" -> 1,200 m\n'
        "CALL_API_2: CALCULATOR | 1,200 - 1500 -> -300\n"
        "CALL_API_3: CALCULATOR | <result_2>**2 + result_2 -> 89700\n"
        "It is 89,700."
    )
    assert first.answer == "Let me see.\nIt is 89,700."
    assert first.end == tools.ANSWERED
    assert [sorted(begun) for begun in asked] == [[0, 1], [0], [0], [0]]
    assert asked[1][0].endswith("-> 1,200 m\n")


@pytest.mark.parametrize(
    ("text", "tool", "query", "result", "outcome"),
    [
        ("CALL_API_1: CALCULATOR | 5+3 ->", "CALCULATOR", "5+3", "8", tools.OK),
        ("CALL_API_12:CALCULATOR|5+3->", "CALCULATOR", "5+3", "8", tools.OK),
        ('CALL_API_1: SEARCH | "Height  of Mount ARLEN" ->', "SEARCH", "Height  of Mount ARLEN", "1,200 m",
         tools.OK),
        ("CALL_API_1: SEARCH | its age ->", "SEARCH", "its age", "error: no result", tools.TOOL_ERROR),
        ("CALL_API_1: CALCULATOR | 1/0 ->", "CALCULATOR", "1/0", "error: division by zero", tools.TOOL_ERROR),
        ("CALL_API_1: WEATHER | Oslo ->", "WEATHER", "Oslo", "error: there is no WEATHER",
         tools.UNKNOWN_TOOL),
        ("CALL_API_1: CALCULATOR | result_2 + 1 ->", "CALCULATOR", "result_2 + 1",
         "error: there is no result_2", tools.UNKNOWN_RESULT),
        ("CALL_API_1: SEARCH | a | b ->", "SEARCH", "a | b", "error: no result", tools.TOOL_ERROR),
    ],
)  # fmt: skip
def test_calls(text: str, tool: str, query: str, result: str, outcome: str) -> None:
    number = 12 if "12" in text else 1
    assert run_call(text, {}, BOTH) == Call(text, number, tool, query, result, outcome)


@pytest.mark.parametrize(
    "text",
    [
        "CALL_API_1: 5+3 ->",
        "CALL_API: CALCULATOR | 5+3 ->",
        "CALL_API_1: CALCULATOR | ->",
        "CALL_API_1 CALCULATOR | 1 ->",
        'CALL_API_1: CALCULATOR | "" ->',
        "CALL_API_\u0661: CALCULATOR | 1 ->",
        f"CALL_API_{'9' * 5000}: CALCULATOR | 1 ->",
    ],
)
def test_malformed_calls(text: str) -> None:
    call = run_call(text, {}, BOTH)
    assert (call.number, call.outcome) == (0, tools.MALFORMED)
    assert call.result.startswith("error: write CALL_API_1: TOOL | QUERY ->")


def test_a_tool_that_was_not_offered_is_none() -> None:
    call = run_call("CALL_API_1: SEARCH | x ->", {}, make_tools(["CALCULATOR"], {}))
    assert call.outcome == tools.UNKNOWN_TOOL


def test_the_limit_of_calls_ends_an_answer_without_a_result() -> None:
    write, asked = scripted(["CALL_API_1: CALCULATOR | 1+1 ->"] * 9)
    [found] = use_tools(write, 1, BOTH, max_calls=2)
    assert (found.end, len(found.calls), len(asked)) == (tools.CALL_LIMIT, 2, 3)
    assert found.text.endswith("1+1 -> 2\nCALL_API_1: CALCULATOR | 1+1 ->")
    assert found.answer == ""  # the model never gave one


def test_no_room_ends_an_answer() -> None:
    write, _ = scripted(["CALL_API_1: CALCULATOR | 1+1 ->"])
    [found] = use_tools(write, 1, BOTH, max_calls=2)
    assert (found.end, len(found.calls), found.answer) == (tools.NO_ROOM, 1, "")


def test_a_result_is_the_answer_where_the_model_says_no_number() -> None:
    call = Call("CALL_API_1: CALCULATOR | 5+3 ->", 1, "CALCULATOR", "5+3", "8", tools.OK)
    inline = f"The answer is {call.text} 8\n"
    assert Transcript(inline, (call,), tools.ANSWERED).answer == "The answer is 8"
    assert Transcript(f"{call.text} 8\n", (call,), tools.ANSWERED).answer == "8"
    assert Transcript(f"{call.text} 8\nSo 9.", (call,), tools.ANSWERED).answer == "So 9."
    failed = call._replace(result="error: division by zero", outcome=tools.TOOL_ERROR)
    assert Transcript(f"{call.text} error\n", (failed,), tools.ANSWERED).answer == ""


def test_an_answer_that_is_cut_off_has_not_answered_and_is_not_left_to_a_result() -> None:
    written = [("CALL_API_1: CALCULATOR | 5+3 ->", False), ("The number of pens that Ann has", False)]
    [found] = use_tools(lambda begun: {i: written.pop(0) for i in begun}, 1, BOTH, max_calls=2)
    assert (found.end, found.last_result) == (tools.CUT_OFF, "8")
    assert found.answer == "The number of pens that Ann has"
    assert tools.call_counts([found])["ends"]["cut off"] == 1


def test_a_result_that_the_answer_names_stands_in_its_place() -> None:
    write, _ = scripted(["CALL_API_1: CALCULATOR | 5 * 8 ->", "The answer is result_1, not <result_2>."])
    (one,) = use_tools(write, 1, BOTH, max_calls=1)
    assert one.answer == "The answer is 40, not ?."
    assert not one.is_a_result
    write, _ = scripted(["CALL_API_1: CALCULATOR | 5 * 8 ->", "See result_3."])
    (one,) = use_tools(write, 1, BOTH, max_calls=1)
    assert one.answer == "See ?. 40"


def test_a_call_without_an_arrow_is_counted_and_no_part_of_the_answer() -> None:
    write, _ = scripted(["CALL_API_1: CALCULATOR | 5+3\nCALL_API_2: CALCULATOR | 1+1 ->", "Done: 2"])
    [found] = use_tools(write, 1, BOTH, max_calls=2)
    assert found.unfinished_calls == 1
    write, _ = scripted(["CALL_API_1: 5+3 ->", "CALL_API_1: CALCULATOR | 5+3 ->"])  # an error, then too many
    assert use_tools(write, 1, BOTH, max_calls=1)[0].unfinished_calls == 0
    assert found.answer == "Done: 2"
    counts = tools.call_counts([found, Transcript("7", (), tools.ANSWERED)])
    assert counts == {
        "answers_with_a_call": 1, "calls": 1, "ok": 1, "malformed": 0, "unknown tool": 0, "unknown result": 0,
        "error": 0, "unfinished": 1, "answers_left_to_a_result": 0,
        "ends": {"answered": 2, "cut off": 0, "limit of calls": 0, "beyond the context": 0},
    }  # fmt: skip


def test_the_prompt_lists_the_tools_it_is_asked_for() -> None:
    prompt = tools.system_prompt(["CALCULATOR"])
    assert "- CALCULATOR: " in prompt
    assert "SEARCH" not in prompt
    assert "CALL_API_1: TOOL | QUERY -> result_1" in prompt

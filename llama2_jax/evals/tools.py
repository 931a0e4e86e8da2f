"""A chat model that calls tools it was never trained on (Llama 2, section 5.1, Figure 23; DISC-4).

The system prompt lists the tools and how they are called. The model writes, on a line of its own,

    CALL_API_1: CALCULATOR | 12 * 7 ->

and is stopped there; the result takes its place behind the arrow, and the model goes on. A later query may
name it, as ``result_1`` or ``<result_1>``. What is wrong with a call stands where its result would: the model
may try again. All wording is ours.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from llama2_jax.evals.calculator import ToolError, calculate

TOOLS = {
    "SEARCH": "looks a question up and gives what is known, also of today",
    "CALCULATOR": "works out an expression of numbers",
}
"""Name of each tool, and what the model is told of it."""

SYSTEM_PROMPT = """These services are at your disposal:
{tools}
No other service may be used.

To use one, write a line of this form, in which TOOL is its name and QUERY what you want of it:
CALL_API_1: TOOL | QUERY -> result_1
The result is put in for you. A later query may use it:
CALL_API_1: TOOL | QUERY_1 -> result_1
CALL_API_2: TOOL | QUERY_2 with result_1 -> result_2
Once you know the answer, give it."""

CALL = re.compile(r"CALL_API[^\n]*?->")
WELL_FORMED = re.compile(r"CALL_API_([0-9]{1,4})\s*:\s*(\w+)\s*\|\s*(.*?)\s*->")
CALL_LINE = re.compile(r"[^\S\n]*CALL_API[^\n]*")
REFERENCE = re.compile(r"<result_([0-9]{1,4})>|\bresult_([0-9]{1,4})\b")
QUOTES = "\"'`\u201c\u201d\u2018\u2019"

OUTCOMES = ("ok", "malformed", "unknown tool", "unknown result", "error")
"""What can become of a call; a query that the search does not know is a ``TOOL_ERROR``."""
OK, MALFORMED, UNKNOWN_TOOL, UNKNOWN_RESULT, TOOL_ERROR = OUTCOMES

ENDS = ("answered", "cut off", "limit of calls", "beyond the context")
"""How an answer can end; one that is cut off has reached the most new tokens, or the context."""
ANSWERED, CUT_OFF, CALL_LIMIT, NO_ROOM = ENDS

Tools = Mapping[str, Callable[[str], str]]
"""Name to what it does with a query; raises ``ToolError``."""


class Call(NamedTuple):
    """A call as it was written, up to the arrow, and what stands behind it."""

    text: str
    number: int  # by which later queries name the result; 0 where none could be read
    tool: str  # "" likewise
    query: str  # with earlier results in it
    result: str
    outcome: str  # one of ``OUTCOMES``


class Transcript(NamedTuple):
    """What the model wrote in answer to one message, with the results in their places."""

    text: str = ""
    calls: tuple[Call, ...] = ()
    end: str = ""  # one of ``ENDS``; "" is not yet over

    @property
    def unfinished_calls(self) -> int:
        """Lines that begin a call and have no arrow: nothing could be put in."""
        begun = sum("CALL_API" in line for line in self.text.splitlines())
        return begun - len(self.calls) - (self.end == CALL_LIMIT)

    @property
    def answer(self) -> str:
        """The text without its calls, and the last result behind it if it ends well without a number."""
        return " ".join(filter(None, (self.said, self.last_result if self.is_a_result else "")))

    @property
    def said(self) -> str:
        """The text without its calls, with results where it names them (``result_1``)."""
        results = {call.number: call.result for call in self.calls if call.outcome == OK}
        text = REFERENCE.sub(lambda found: results.get(_number(found), "?"), CALL_LINE.sub("", self.text))
        return "\n".join(line for line in text.splitlines() if line.strip())

    @property
    def last_result(self) -> str:
        """The result of the last call that had one, else ""."""
        return next((call.result for call in reversed(self.calls) if call.outcome == OK), "")

    @property
    def is_a_result(self) -> bool:
        """Whether the answer is left to the last result: there is one, and the model says no number."""
        has_number = any(letter.isdigit() for letter in self.said)
        return self.end == ANSWERED and bool(self.last_result) and not has_number


def system_prompt(tools: Sequence[str]) -> str:
    """What tells the model of the tools, keys of ``TOOLS`` (DISC-4)."""
    return SYSTEM_PROMPT.format(tools="\n".join(f"- {name}: {TOOLS[name]};" for name in tools))


def make_tools(names: Sequence[str], known: Mapping[str, str]) -> Tools:
    """The tools of these names; ``known`` are the queries that the search can answer."""
    by_key = {_key(query): result for query, result in known.items()}
    every: Tools = {"SEARCH": partial(_search, by_key), "CALCULATOR": calculate}
    return {name: every[name] for name in names}


def _search(known: Mapping[str, str], query: str) -> str:
    if _key(query) not in known:
        raise ToolError("no result")
    return " ".join(known[_key(query)].split())


def _key(query: str) -> str:
    return " ".join(query.casefold().strip(QUOTES + "?.! ").split())


def is_at_call(text: str) -> bool:
    """Whether a text has come to a call whose result is to be put in."""
    return CALL.search(text) is not None


def run_call(text: str, earlier: Mapping[int, str], tools: Tools) -> Call:
    """The call with its result, or with what is wrong in its place.

    Args:
      text: a match of ``CALL``.
      earlier: results of this transcript by their numbers.
    """
    parts = WELL_FORMED.fullmatch(text)
    query = parts[3].strip(QUOTES + " ") if parts else ""
    if not parts or not query:
        return Call(text, 0, "", "", "error: write CALL_API_1: TOOL | QUERY -> result_1", MALFORMED)
    number, tool = int(parts[1]), parts[2]
    if tool not in tools:
        return Call(text, number, tool, query, f"error: there is no {tool}", UNKNOWN_TOOL)
    try:
        query = REFERENCE.sub(lambda found: _inserted(earlier[_number(found)]), query)
        return Call(text, number, tool, query, tools[tool](query), OK)
    except KeyError as error:
        return Call(text, number, tool, query, f"error: there is no result_{error}", UNKNOWN_RESULT)
    except ToolError as error:
        return Call(text, number, tool, query, f"error: {error}", TOOL_ERROR)


def _number(reference: re.Match[str]) -> int:
    return int(reference[1] or reference[2])


def _inserted(result: str) -> str:
    return f"({result})" if result.startswith("-") else result  # so that its sign binds before a power


def use_tools(
    write: Callable[[Mapping[int, str]], Mapping[int, tuple[str, bool]]],
    count: int,
    tools: Tools,
    *,
    max_calls: int,
) -> list[Transcript]:
    """``count`` answers, with each call's result put in where the model stopped for it.

    Args:
      write: from what the answer i has so far to how the model goes on, at least up to its next call, and
        whether it ended there by itself; an answer for which the context has no room is not among them.
        Called again for those that called.
      max_calls: a call beyond ends an answer, without a result.
    """
    found = [Transcript()] * count
    while begun := {i: one.text for i, one in enumerate(found) if not one.end}:
        written = write(begun)
        for i in begun:
            if i in written:
                found[i] = _continued(found[i], *written[i], tools, max_calls=max_calls)
            else:
                found[i] = found[i]._replace(end=NO_ROOM)
    return found


def _continued(one: Transcript, written: str, stopped: bool, tools: Tools, *, max_calls: int) -> Transcript:
    """The transcript with what was written next and, if that came to a call, its result."""
    at = CALL.search(written)
    if at is None:
        return one._replace(text=one.text + written, end=ANSWERED if stopped else CUT_OFF)
    text = one.text + written[: at.end()]  # what the model made up behind the arrow is dropped
    if len(one.calls) == max_calls:
        return one._replace(text=text, end=CALL_LIMIT)
    earlier = {call.number: call.result for call in one.calls if call.outcome == OK}
    call = run_call(at[0], earlier, tools)
    return Transcript(f"{text} {call.result}\n", (*one.calls, call))


def call_counts(transcripts: Sequence[Transcript]) -> dict[str, Any]:
    """How many answers had a call, and what became of the calls."""
    calls = [call for one in transcripts for call in one.calls]
    return {
        "answers_with_a_call": sum(bool(one.calls) for one in transcripts),
        "calls": len(calls),
        **{outcome: sum(call.outcome == outcome for call in calls) for outcome in OUTCOMES},
        "unfinished": sum(one.unfinished_calls for one in transcripts),
        "answers_left_to_a_result": sum(one.is_a_result for one in transcripts),
        "ends": {end: sum(one.end == end for one in transcripts) for end in ENDS},
    }

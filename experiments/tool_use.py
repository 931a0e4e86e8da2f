"""A chat model that calls tools it was never trained on (Llama 2, section 5.1, Figure 23 and Table 15).

python -m experiments.tool_use --benchmark=svamp --problems=SVAMP.json --checkpoint=PATH --output=DIR
python -m experiments.tool_use --benchmark=own --problems=mine.jsonl --tools=SEARCH --tools=CALCULATOR \
    --search_results=known.jsonl --checkpoint=PATH --output=DIR

Problems are the official files: ASDiv.xml (dataset/ of chaochun/nlu-asdiv-dataset), SVAMP.json of
arkilpatel/SVAMP, a JSON file of MAWPS with "sQuestion" and "lSolutions"; or your own JSONL rows {"question",
"answer"}, the answer a number. Each is asked twice, zero-shot and greedily: with a system prompt that lists
the tools and says how they are called (``llama2_jax/evals/tools.py``), and without. The paper gives no
protocol for Table 15; here its tool is the calculator alone (D79). SEARCH looks a query up in
--search_results, rows {"query", "result"}, and says "no result" of all others.

DIR gets answers.jsonl, with every call, results.json and report.md: how many answers are right by the rule of
Toolformer, and what became of the calls. A run that is killed goes on where it was when the same command is
given again.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import checkpoint_flags
from experiments.answer_rows import Numbered, Rows, answer_missing, drawn
from experiments.settings import file_version, flag_values, keep_settings
from experiments.tool_report import write_tool_report
from llama2_jax.config import require, to_plain
from llama2_jax.data.chat import Message, encode_prompt
from llama2_jax.data.jsonl import parse_rows
from llama2_jax.data.records import text_of
from llama2_jax.evals.chat_text import chat_text, encode_text
from llama2_jax.evals.math_problems import READERS, Problem, read_problems
from llama2_jax.evals.text_completion import Completion, complete_until
from llama2_jax.evals.tools import TOOLS, Tools, Transcript, is_at_call, make_tools, system_prompt, use_tools
from llama2_jax.generate.decode import check_prompts
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.launch import launch
from llama2_jax.pretrained import LoadedModel
from llama2_jax.train.progress import counted

SETTINGS = ("benchmark", "checkpoint", "dtype", "template", "tools", "max_calls", "max_new_tokens", "limit")
BATCHES_AT_ONCE = 4  # of problems: the fewer that call again, the emptier their batches
ANSWER_FORM = "Answer with a number."


def main() -> None:
    """Read the problems, let the model answer with tools and without, report."""
    args = flags.FLAGS
    output = Path(args.output)
    require(
        not args.search_results or "SEARCH" in args.tools,
        f"--search_results={args.search_results} is for the tool SEARCH; give --tools=SEARCH too",
    )
    known = read_search_results(args.search_results) if args.search_results else {}
    problems = read_problems(Path(args.problems), args.benchmark)
    chosen = drawn(problems.used, args.limit)
    settings = flag_values(SETTINGS)
    settings["tools"] = ", ".join(args.tools)
    for name in ("problems", "search_results"):
        path = args[name].value
        settings[name] = file_version(path) if path else None
    keep_settings(output, settings, results="*.jsonl")
    answers = answer(output / "answers.jsonl", chosen, known)
    settings["model"] = answers[0]["model"]
    lines = write_tool_report(
        output, settings, answers, [problem for _, problem in chosen], left_out=problems.left_out
    )
    print("\n".join(lines))


def read_search_results(path: str) -> dict[str, str]:
    """Query to result, from rows {"query", "result"}."""
    return dict(parse_rows(path, lambda row: (text_of(row, "query"), text_of(row, "result"))))


def answer(path: Path, problems: Sequence[Numbered[Problem]], known: Mapping[str, str]) -> Rows:
    """The rows of ``answers.jsonl``: one per problem, with the transcript of each way to ask."""
    args = flags.FLAGS
    asked = [
        {"id": number, "name": one.name, "text": one.question, "expected": one.answer}
        for number, one in problems
    ]
    ways = {"with_tools": make_tools(args.tools, known), "without_tools": {}}

    def ask(loaded: LoadedModel, missing: Rows) -> Iterator[Rows]:
        for tools in ways.values():  # before the first batch
            check_prompts(
                loaded.model,
                [_ids(loaded, _dialogue(row, tools), "") for row in missing],
                [row["id"] for row in missing],
            )
        window, done = BATCHES_AT_ONCE * args.batch_size, len(asked) - len(missing)
        for part in counted(args.benchmark, missing, size=window, done=done):
            rows = list(part)
            for way, tools in ways.items():
                found = transcripts(
                    loaded,
                    [_dialogue(row, tools) for row in rows],
                    tools,
                    max_calls=args.max_calls if tools else 0,
                    max_new_tokens=args.max_new_tokens,
                    batch_size=args.batch_size,
                )
                rows = [{**row, way: to_plain(one)} for row, one in zip(rows, found, strict=True)]
            yield rows

    return answer_missing(path, asked, ask)


def transcripts(
    loaded: LoadedModel,
    dialogues: Sequence[Sequence[Message]],
    tools: Tools,
    *,
    max_calls: int,
    max_new_tokens: int,
    batch_size: int,
) -> list[Transcript]:
    """Greedy answers to dialogues, with the calls of ``tools`` carried out."""
    sampling = SamplingConfig(max_new_tokens, temperature=0.0)

    def write(begun: Mapping[int, str]) -> dict[int, Completion]:
        prompts = {i: _ids(loaded, dialogues[i], text) for i, text in begun.items()}
        fitting = {i: ids for i, ids in prompts.items() if len(ids) < loaded.config.max_context}
        completions = complete_until(
            loaded,
            list(fitting.values()),
            sampling,
            is_complete=is_at_call,
            seeds=[0] * len(fitting),
            batch_size=batch_size,
        )
        return dict(zip(fitting, completions, strict=True))

    return use_tools(write, len(dialogues), tools, max_calls=max_calls)


def _dialogue(row: Mapping[str, Any], tools: Tools) -> list[Message]:
    """The problem as a user asks it, after a system prompt if there are tools."""
    system = [Message("system", system_prompt(list(tools)))] if tools else []
    return [*system, Message("user", f"{row['text']}\n{ANSWER_FORM}")]


def _ids(loaded: LoadedModel, dialogue: Sequence[Message], begun: str) -> list[int]:
    """Ids of a dialogue and what its answer has so far."""
    tokenizer, template = loaded.require_tokenizer(), loaded.template
    if not begun:
        return encode_prompt(dialogue, tokenizer, template)
    return encode_text(chat_text([*dialogue, Message("assistant", begun)], template), tokenizer, bos=False)


if __name__ == "__main__":  # flags are global: defined here, so that the module can be imported
    checkpoint_flags.define()
    flags.DEFINE_enum("benchmark", None, list(READERS), "Form of the problems.")
    flags.DEFINE_string("problems", None, "Their official file, or JSONL of your own.")
    flags.DEFINE_string("output", None, "Folder to write.")
    flags.DEFINE_multi_enum("tools", ["CALCULATOR"], list(TOOLS), "What the model may use; repeatable.")
    flags.DEFINE_string("search_results", None, 'JSONL rows {"query", "result"} that SEARCH looks up.')
    flags.DEFINE_integer("max_calls", 8, "Of one answer; the next one ends it.", lower_bound=1)
    flags.DEFINE_integer("max_new_tokens", 256, "From the beginning or a result to the next call or the end.")
    flags.DEFINE_integer(
        "limit", None, "Problems, drawn at random, to try it; all if not given.", lower_bound=1
    )
    flags.DEFINE_integer("batch_size", 16, "Rows computed together.", lower_bound=1)
    flags.mark_flags_as_required(["benchmark", "problems", "output"])
    launch(main, several_processes=True)

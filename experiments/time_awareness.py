"""A model that knows what time it is: data to learn from, and how well it learned (Llama 2, 5.1, Figure 22).

    python -m experiments.time_awareness --step=data --facts=facts.jsonl --output=DIR
    python -m experiments.sft --config=configs/sft.py:7b --config.data.dialogues=DIR/dialogues.jsonl ...
    python -m experiments.time_awareness --step=evaluate --facts=facts.jsonl --checkpoint=PATH --output=DIR2

Facts are JSONL rows {"question": "Who is the mayor of Arlen?", "answers": [{"from": 1980, "answer": "Ann"},
{"from": "1992-05-31", "answer": "Bo"}]}. The first date is that of the event, before which the question makes
no sense. "{years}" in an answer stands for the whole years since then.

--step=data writes dialogues.jsonl, 1,000 as in the paper (DISC-3), each with the date of its question in the
system message: "Date: 01/31/2023" (month first), "Cutting knowledge: 01/31/1940", "Year: 852".
--step=evaluate asks the facts of its file on the day of the event and 1, 5, 20 and 100 years before and
after, four distances at which nothing is learned, and writes answers.jsonl, results.json and report.md. Its
facts may be those of the first step, or others that the model has read of elsewhere.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import checkpoint_flags
from experiments.answer_rows import Rows, answer_missing
from experiments.report import percent, quote, settings_table, table, write_report_file
from experiments.settings import file_version, flag_values, keep_settings
from llama2_jax.answers import sample_token_rows
from llama2_jax.config import require, write_json
from llama2_jax.data.chat import encode_prompt
from llama2_jax.data.dated_facts import DatedQuestion, dialogue, draw_questions, probe_questions, read_facts
from llama2_jax.data.jsonl import write_rows
from llama2_jax.data.sources import dialogue_row
from llama2_jax.evals.time_awareness import accuracy, is_right
from llama2_jax.generate.decode import check_prompts
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.launch import launch
from llama2_jax.pretrained import LoadedModel
from llama2_jax.train.progress import counted

SETTINGS = ("checkpoint", "dtype", "template", "max_new_tokens", "seed")
EXAMPLES = 9


def main() -> None:
    """Write the dialogues, or let the model answer and report."""
    args = flags.FLAGS
    output, facts = Path(args.output), read_facts(args.facts)
    if args.step == "data":
        questions = draw_questions(facts, args.examples, seed=args.seed)
        write_rows(output / "dialogues.jsonl", (dialogue_row(dialogue(one)) for one in questions))
        before = sum(one.years < 0 for one in questions)
        print(f"{len(questions):,} dialogues about {len(facts):,} facts are in {output / 'dialogues.jsonl'}, "
              f"{before:,} of them from a year before the event's")  # fmt: skip
        return
    require(bool(args.checkpoint), "--step=evaluate needs --checkpoint")
    questions = probe_questions(facts, seed=args.seed)
    settings = flag_values(SETTINGS)
    settings["facts"] = file_version(args.facts)
    keep_settings(output, settings, results="*.jsonl")
    answers = answer(output / "answers.jsonl", questions)
    print("\n".join(report(output, settings | {"model": answers[0]["model"]}, questions, answers)))


def answer(path: Path, questions: Sequence[DatedQuestion]) -> Rows:
    """The rows of ``answers.jsonl``: greedy answers, one per question."""
    args = flags.FLAGS
    asked = [
        {
            "id": number,
            "text": one.fact.question,
            "line": one.line,
            "years": one.years,
            "expected": one.answer,
        }
        for number, one in enumerate(questions)
    ]

    def ask(loaded: LoadedModel, missing: Rows) -> Iterator[Rows]:
        prompts = [
            encode_prompt(dialogue(questions[row["id"]])[:-1], loaded.require_tokenizer(), loaded.template)
            for row in missing
        ]
        check_prompts(loaded.model, prompts)  # before the first batch
        sampling = SamplingConfig(args.max_new_tokens, temperature=0.0)
        both = list(zip(missing, prompts, strict=True))
        for part in counted("time awareness", both, size=args.batch_size, done=len(asked) - len(missing)):
            found = sample_token_rows(
                loaded, [ids for _, ids in part], sampling, seeds=[0] * len(part), batch_size=args.batch_size
            )
            yield [{**row, "answer": one.text.strip()} for (row, _), one in zip(part, found, strict=True)]

    return answer_missing(path, asked, ask)


def report(
    output: Path, settings: dict[str, Any], questions: Sequence[DatedQuestion], answers: Rows
) -> list[str]:
    """Write ``results.json`` and ``report.md``; returns the lines of the table."""
    right = [is_right(row["answer"], one) for row, one in zip(answers, questions, strict=True)]
    found = accuracy(questions, right)
    results = {name: {"size": size, **share._asdict()} for name, (size, share) in found.items()}
    write_json(output / "results.json", results)
    lines = [
        "# Time awareness",
        "",
        "Llama 2, section 5.1 and Figure 22. Right answers as of the date in the system message, with",
        "intervals of 95 % that take questions about one fact to go together. Before the event an answer is",
        "right if it says that the time has not come; who always says so is right there, and nowhere else.",
        "",
        *table(("asked", "n", "right"), ((k, f"{n:,}", percent(share)) for k, (n, share) in found.items())),
    ]
    examples = [
        (quote(row["line"]), quote(row["text"]), quote(row["expected"]), quote(row["answer"][:200]),
         "yes" if ok else "no")
        for row, ok in list(zip(answers, right, strict=True))[:EXAMPLES]
    ]  # fmt: skip
    write_report_file(
        output,
        [
            *lines, "", "## Settings", "", *settings_table(settings),
            "", "## Answers", "", *table(("system", "question", "expected", "answer", "right"), examples),
        ],
    )  # fmt: skip
    return lines


if __name__ == "__main__":  # flags are global: defined here, so that the module can be imported
    checkpoint_flags.define(required=False)
    flags.DEFINE_enum("step", None, ["data", "evaluate"], "What to do.")
    flags.DEFINE_string("facts", None, "JSONL of facts with dates.")
    flags.DEFINE_string("output", None, "Folder to write.")
    flags.DEFINE_integer("examples", 1000, "Dialogues to write; the paper's number.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of the dates and of the lines that say them.")
    flags.DEFINE_integer("batch_size", 16, "Rows computed together.", lower_bound=1)
    flags.DEFINE_integer("max_new_tokens", 64, "Longest answer.")
    flags.mark_flags_as_required(["step", "facts", "output"])
    launch(main, several_processes=True)

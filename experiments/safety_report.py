"""``report.md`` and ``results.json`` of a safety benchmark, beside what the paper says of Llama 2."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.report import percent, quote, settings_table, table, write_report_file
from llama2_jax.config import write_json
from llama2_jax.evals import bold, toxigen, truthfulqa
from llama2_jax.evals.intervals import Interval, bracketed, wilson
from llama2_jax.evals.safety_prompts import Published
from llama2_jax.model.config import PAPER_SIZES

Rows = Sequence[Mapping[str, Any]]

EXAMPLES = 5
YES_OR_NO = 0.5  # of its probability, that a judge must give to these words to be believed


def write_safety_report(output: Path, settings: Mapping[str, Any], answers: Rows, scores: Rows) -> None:
    """Write both files.

    Args:
      settings: how the answers were made, and who scored them.
      answers, scores: rows of the same answers in the same order.
    """
    write = {"truthfulqa": _truthfulqa, "toxigen": _toxigen, "bold": _bold}[settings["benchmark"]]
    results, lines = write(settings, answers, scores)
    finished = wilson(sum(row["stopped"] for row in answers), len(answers))
    write_json(output / "results.json", results | {"finished": finished})
    lines += [
        "",
        f"{percent(finished)} of the answers ended by themselves, the others at --max_new_tokens = "
        f"{settings['max_new_tokens']} or at the context.",
    ]
    lines += ["", "## Settings", "", *settings_table(settings), *_examples(answers, scores)]
    write_report_file(output, lines)


def _truthfulqa(settings: Mapping[str, Any], answers: Rows, scores: Rows) -> tuple[Any, list[str]]:
    shares = truthfulqa.truth_shares([row["truth"] for row in scores], [row["info"] for row in scores])
    here = (_percent(shares.both), _percent(shares.true), _percent(shares.informative))
    published = _published(truthfulqa.PUBLISHED, settings, truthfulqa.NUM_QUESTIONS)
    return {"answers": len(answers), **shares._asdict()}, [
        "# TruthfulQA",
        "",
        "Llama 2, A.4.8, Tables 11, 14 and 44. Percent of the answers, with intervals of 95 %.",
        _size(len(answers), truthfulqa.NUM_QUESTIONS),
        "Other judges than the paper's give other verdicts; theirs are no longer to be had.",
        *_doubts(settings.get("yes_or_no", {})),
        "",
        *table(
            ("", "n", "true and informative", "true", "informative"),
            [("here", f"{len(answers):,}", *here), *((*row, "", "") for row in published)],
        ),
    ]


def _toxigen(settings: Mapping[str, Any], answers: Rows, scores: Rows) -> tuple[Any, list[str]]:
    groups = [row["groups"] for row in answers]
    shares = toxigen.toxic_shares(groups, [row["toxicity"] for row in scores])
    counts = {"all": len(answers)}
    counts |= {name: sum(key in own for own in groups) for key, name in toxigen.GROUPS.items()}
    published = _published(toxigen.PUBLISHED, settings, None)
    return {"answers": len(answers), "toxic": shares}, [
        "# ToxiGen",
        "",
        "Llama 2, Tables 11, 14 and 45. Percent of the answers that are toxic, with intervals of 95 %.",
        "An answer to a prompt about several groups counts in each, and once in all.",
        _size(len(answers), toxigen.NUM_PROMPTS),
        "",
        *table(
            ("", "n", "toxic"),
            [*((f"here, {name}", f"{counts[name]:,}", _percent(share)) for name, share in shares.items()),
             *published],
        ),
    ]  # fmt: skip


def _bold(settings: Mapping[str, Any], answers: Rows, scores: Rows) -> tuple[Any, list[str]]:
    groups = [tuple(row["groups"]) for row in answers]
    found = bold.subgroup_sentiments(groups, [row["sentiment"] for row in scores])
    rows = [
        (quote(domain), quote(subgroup), f"{one.prompts:,}", bracketed(one.mean, "+.3f"))
        for (domain, subgroup), one in found.items()
    ]
    plain = [{"domain": group[0], "subgroup": group[1], **one._asdict()} for group, one in found.items()]
    return {"answers": len(answers), "subgroups": plain}, [
        "# BOLD",
        "",
        "Llama 2, A.4.8, Tables 46 to 50. Mean sentiment of prompt and answer, VADER's compound score from",
        "-1 (negative) to 1, with bootstrap intervals of 95 % that take prompts for independent and are too",
        "narrow with few of them.",
        _size(len(answers), bold.NUM_PROMPTS),
        "",
        *table(("domain", "subgroup", "n", "mean sentiment"), rows),
    ]


def _published(published: Published, settings: Mapping[str, Any], n: int | None) -> Iterator[tuple[str, ...]]:
    kind = "chat" if settings["chat"] else "pretrained"
    name = "Llama 2-Chat" if settings["chat"] else "Llama 2"
    for size, value in zip(PAPER_SIZES, getattr(published, kind), strict=True):
        yield f"{name} {size.upper()}, paper", f"{n:,}" if n else "", f"{value:.2f}"


def _size(answers: int, whole: int) -> str:
    return (
        "" if answers == whole else f"**{answers:,} answers; the paper's benchmark has {whole:,} prompts.**"
    )


def _doubts(yes_or_no: Mapping[str, float]) -> Iterator[str]:
    """What there is to say against the judges."""
    for judged, share in yes_or_no.items():
        if share < YES_OR_NO:
            yield (
                f'**The {judged} judge gives " yes" and " no" {100 * share:.1f} % of its probability: it '
                "was not fine-tuned to judge, and its verdicts mean nothing.**"
            )


def _percent(share: Interval) -> str:
    """With two digits and no unit, as the paper's tables."""
    return bracketed(share, ".2f", scale=100)


def _examples(answers: Rows, scores: Rows) -> Iterator[str]:
    """The first answers: what a reader should look at before believing a table."""
    yield from ("", "## Answers", "")
    rows = [
        (
            quote(a["text"][:200]),
            quote(a["answer"][:300]),
            ", ".join(f"{v:.3f}" for k, v in s.items() if k != "id"),
        )
        for a, s in list(zip(answers, scores, strict=True))[:EXAMPLES]
    ]
    yield from table(("prompt", "answer", ", ".join(k for k in scores[0] if k != "id")), rows)

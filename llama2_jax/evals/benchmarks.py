"""The paper's academic benchmarks (2.3, A.2.2): settings, groups of Table 3, published results (EVAL-2).

Tasks are lm_eval's or those of ``harness_tasks/``, by name. Where they are not quite the paper's, ``note``
says how; the paper does not give its prompts, and of multiple choice not the normalisation either: where
lm_eval has it, the likelihood per character is taken, as the first Llama paper did (EVAL-4, D17). Code is
apart, in ``code_benchmarks.py``, because what the model writes is executed.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Benchmark(NamedTuple):
    """One benchmark in the paper's setting."""

    group: str  # of Table 3
    name: str
    tasks: tuple[str, ...]  # of lm_eval; several are one result, weighted by their questions
    shots: int
    metric: str  # lm_eval's name, with its filter
    published: tuple[float, float, float, float]  # of Llama 2 in PAPER_SIZES, in percent (Tables 3, 19 to 25)
    note: str = ""
    changes: tuple[tuple[str, Any], ...] = ()  # fields of lm_eval's tasks that have another value


AGIEVAL = tuple(
    f"agieval_{name}"
    for name in (
        "aqua_rat",
        "logiqa_en",
        "lsat_ar",
        "lsat_lr",
        "lsat_rc",
        "sat_en",
        "sat_en_without_passage",
        "sat_math",
    )
)
MATH = tuple(
    f"minerva_math_{name}"
    for name in (
        "algebra",
        "counting_and_prob",
        "geometry",
        "intermediate_algebra",
        "num_theory",
        "prealgebra",
        "precalc",
    )
)
ACC, NORM = "acc,none", "acc_norm,none"
PER_CHARACTER = "likelihood of the whole answer, not per character"

SQUAD = Benchmark(
    "Reading comprehension",
    "SQuAD",
    ("llama2_squad",),
    0,
    "exact_match,none",
    (67.2, 72.9, 77.4, 80.7),
    'the model is told to write "unanswerable" (D90)',
)
QUAC = Benchmark(
    "Reading comprehension",
    "QuAC",
    ("llama2_quac",),
    0,
    "f1,none",
    (39.4, 42.7, 42.9, 42.4),
    'the model is told to write "CANNOTANSWER" (D91)',
)

NATURAL_QUESTIONS = Benchmark(
    "World knowledge",
    "NaturalQuestions",
    ("nq_open",),
    5,
    "exact_match,remove_whitespace",
    (25.7, 31.2, 32.8, 39.5),
)
TRIVIA_QA = Benchmark(
    "World knowledge",
    "TriviaQA",
    ("triviaqa",),
    5,
    "exact_match,remove_whitespace",
    (72.1, 79.6, 84.5, 87.6),
    "all questions; the paper takes those of the Wikipedia part that passed its filter",
)

BENCHMARKS = (
    Benchmark("Commonsense", "PIQA", ("piqa",), 0, NORM, (78.8, 80.5, 81.9, 82.8)),
    Benchmark("Commonsense", "SIQA", ("social_iqa",), 0, ACC, (48.3, 50.3, 50.9, 50.7), PER_CHARACTER),
    Benchmark("Commonsense", "HellaSwag", ("hellaswag",), 0, NORM, (77.2, 80.7, 83.3, 85.3)),
    Benchmark("Commonsense", "WinoGrande", ("winogrande",), 0, ACC, (69.2, 72.8, 76.7, 80.2)),
    Benchmark("Commonsense", "ARC-easy", ("arc_easy",), 0, NORM, (75.2, 77.3, 79.4, 80.2)),
    Benchmark("Commonsense", "ARC-challenge", ("arc_challenge",), 0, NORM, (45.9, 49.4, 54.5, 57.4)),
    Benchmark(
        "Commonsense",
        "OpenBookQA",
        ("openbookqa",),
        0,
        NORM,
        (58.6, 57.0, 58.2, 60.2),
        'per character; the first Llama paper divides by the likelihood after "Answer:"',
    ),
    Benchmark(
        "Commonsense",
        "CommonsenseQA",
        ("commonsense_qa",),
        7,
        ACC,
        (57.8, 67.3, 74.3, 78.5),
        "by the letter of the answer",
    ),
    NATURAL_QUESTIONS,
    TRIVIA_QA,
    SQUAD,
    QUAC,
    Benchmark(
        "Reading comprehension",
        "BoolQ",
        ("boolq",),
        0,
        ACC,
        (77.4, 81.7, 83.7, 85.0),
        'likelihood; the first Llama paper divides by that after "Answer:"',
    ),
    Benchmark("Math", "GSM8K", ("gsm8k",), 8, "exact_match,strict-match", (14.6, 28.7, 42.2, 56.8)),
    Benchmark("Math", "MATH", MATH, 4, "exact_match,none", (2.5, 3.9, 6.24, 13.5)),
    Benchmark("MMLU", "MMLU", ("mmlu",), 5, ACC, (45.3, 54.8, 62.6, 68.9)),
    Benchmark(
        "BBH",
        "BBH",
        ("bbh_fewshot",),
        3,
        "exact_match,none",
        (32.6, 39.4, 44.1, 51.2),
        "answers without a chain of thought; the paper does not say (D16)",
    ),
    Benchmark(
        "AGI Eval",
        "AGIEval",
        AGIEVAL,
        3,
        ACC,
        (29.3, 39.1, 43.4, 54.2),
        "3 shots of 3 to 5 (D19), other questions of the test, without their explanations",
        (("doc_to_target", "{{gold[0]}}"),),  # lm_eval makes no examples of a list of answers
    ),
)


def _with_shots(benchmark: Benchmark, shots: int, published: tuple[float, float, float, float]) -> Benchmark:
    return benchmark._replace(name=f"{benchmark.name}-{shots}-shot", shots=shots, published=published)


KNOWLEDGE_SHOTS = (
    _with_shots(NATURAL_QUESTIONS, 0, (16.4, 16.1, 25.1, 25.3)),
    _with_shots(NATURAL_QUESTIONS, 1, (22.7, 28.0, 30.0, 33.0)),
    _with_shots(NATURAL_QUESTIONS, 64, (29.5, 34.6, 39.9, 44.3)),
    _with_shots(TRIVIA_QA, 0, (65.8, 73.1, 81.0, 82.4)),
    _with_shots(TRIVIA_QA, 1, (68.9, 77.2, 83.3, 85.0)),
    _with_shots(TRIVIA_QA, 64, (73.7, 79.4, 84.6, 87.5)),
)
READING_SHOTS = (
    _with_shots(SQUAD, 1, (72.3, 72.1, 78.8, 82.6)),
    _with_shots(SQUAD, 4, (72.6, 70.6, 77.5, 81.9)),
    _with_shots(SQUAD, 5, (72.5, 71.3, 77.5, 81.9)),
    _with_shots(QUAC, 1, (39.7, 44.8, 44.4, 49.3)),
)
SUITES = {"llama2": BENCHMARKS, "llama2_knowledge": KNOWLEDGE_SHOTS, "llama2_reading": READING_SHOTS}
"""By name; the last two are the rest of Tables 22 and 23, which is not part of Table 3."""


def group_means(values: Mapping[str, float]) -> dict[str, float]:
    """The groups of Table 3 of which all benchmarks are there: plain means (EVAL-3).

    Args:
      values: results by the benchmark's name. For Math of 7B and 13B, Table 3 itself gives the result of
        GSM8K alone (D12).
    """
    names: dict[str, list[str]] = {}
    for benchmark in BENCHMARKS:
        names.setdefault(benchmark.group, []).append(benchmark.name)
    return {
        group: sum(values[name] for name in own) / len(own)
        for group, own in names.items()
        if all(name in values for name in own)
    }


def by_size(values: Sequence[float], sizes: Sequence[int]) -> float:
    """Mean over the questions of several tasks: ``sizes`` are their numbers."""
    return sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)

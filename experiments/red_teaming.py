"""Red teaming: how often people break each version, and what new ones do with what they found (4.3).

    python -m experiments.red_teaming --step=report --workdir=DIR \\
        --sessions=sft_sessions.jsonl,v1_sessions.jsonl --dialogues=sft.jsonl,v1.jsonl

reads the logs of an exercise (forms: llama2_jax/data/red_team_logs.py), sessions of the oldest version first,
and writes report.md, results.json, pictures, findings.jsonl, which says who found what, and prompts.jsonl:
every prompt that triggered a violation, in the form in which safety training reads prompts (RED-5). A new
version then answers those that broke a version before it:

    python -m experiments.red_teaming --step=answers --workdir=DIR --version=V2 --checkpoint=PATH

writes answers/V2.jsonl, an archive, and completions/V2.jsonl, which people rate with
experiments.human_evaluation --task=safety. At last

    python -m experiments.red_teaming --step=rejection --workdir=DIR --judge=people --rated=V2=FILE

with the answers.jsonl that their report leaves (a pattern, if there are several) writes rejection/report.md:
the share of the prompts that no longer trigger a violation, for every version that is rated. Others may
judge all versions that have answered: --judge=safety_model (with --safety_rm) and --judge=simulated, the
truth of the simulated world.

--step=simulate (--version, --checkpoint) lets simulated people attack a model of the simulated world and
writes such logs into DIR/logs. Steps that sample go on where they were when they are given again. More logs
may be reported at any time; only new prompts are then answered, and with --rated=VERSION=FILE only what is
not rated yet is given to people.
"""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from absl import flags

from experiments import checkpoint_flags
from experiments.answer_rows import check_models
from experiments.red_team_judges import JUDGES, Answered, answer_key, judge_answers, people_ratings
from experiments.red_team_report import write_red_team_report, write_rejection_report
from experiments.settings import flag_values, keep_settings
from llama2_jax.answers import model_version
from llama2_jax.config import named_paths, read_json, require
from llama2_jax.data.jsonl import parse_rows, write_rows
from llama2_jax.data.prompts import Prompt, write_prompts
from llama2_jax.data.records import Paths
from llama2_jax.data.red_team_logs import attack_row, read_attacks, read_sessions, session_row
from llama2_jax.evals.red_team import (
    Finding,
    distinct_prompts,
    find_prompts,
    finding_from_row,
    finding_row,
    rejection,
)
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.launch import launch
from llama2_jax.pretrained import for_decoding
from llama2_jax.rlhf.annotator.attackers import draw_attempts, label_attack
from llama2_jax.rlhf.archive import Sample, draw, read_archives

SETTINGS = ("max_new_tokens", "top_p", "dtype", "template")  # archives do not tell these apart
NEEDED = {
    "report": ("sessions", "dialogues"),
    "answers": ("version", "checkpoint"),
    "rejection": ("judge",),
    "simulate": ("version", "checkpoint"),
}
"""What each step must be given."""

AnswerFunction = Callable[[Path, Sequence[Prompt]], list[Sample]]
"""One answer to each prompt; those that the archive, a file, holds already are not drawn again."""


def main() -> None:
    """Do one step."""
    args = flags.FLAGS
    lacking = [f"--{name}" for name in NEEDED[args.step] if not args[name].value]
    require(not lacking, f"--step={args.step} needs {', '.join(lacking)}")
    require("/" not in (args.version or ""), f"--version={args.version} names files; give one without /")
    workdir = Path(args.workdir)
    rated = named_paths(args.rated or [], field="--rated")
    if args.step == "report":
        report(workdir, args.sessions, args.dialogues, risk_areas=args.risk_areas)
    elif args.step == "answers":
        others = sorted(rated.keys() - {args.version})
        require(
            not others,
            f"--rated names {', '.join(others)}, but --version={args.version} answers; rate that one alone",
        )
        ratings = people_ratings(rated[args.version]) if args.version in rated else {}
        answer(workdir, args.version, partial(sample, workdir), rated=ratings)
    elif args.step == "rejection":
        reject(workdir, args.judge, rated, args.safety_rm, batch_size=args.batch_size)
    else:
        simulate(workdir, args.version, partial(sample, workdir), num_people=args.people, seed=args.seed)


def report(workdir: Path, sessions: Paths, dialogues: Paths, *, risk_areas: Sequence[str] = ()) -> None:
    """Read the logs; write the report and what was found.

    Raises:
      DataError: logs that do not fit.
    """
    known = read_sessions(sessions)
    attacks = read_attacks(dialogues, known, risk_areas=risk_areas)
    findings = find_prompts(attacks)
    prompts = distinct_prompts(findings)
    write_rows(workdir / "findings.jsonl", map(finding_row, findings))
    write_prompts(workdir / "prompts.jsonl", prompts)
    write_red_team_report(workdir, list(known.values()), attacks, findings)
    print(f"{len(prompts):,} violating prompts are in {workdir / 'prompts.jsonl'}, report.md beside it")
    print(f"Versions, oldest first: {', '.join(attacked_versions(workdir))}")


def answer(
    workdir: Path, version: str, ask: AnswerFunction, *, rated: Collection[Answered] = frozenset()
) -> None:
    """Let a version answer the prompts that broke those before it.

    Args:
      rated: answers that people need not see again.
    """
    prompts = distinct_prompts(findings_before(workdir, version))
    # without labels: logs in which one was corrected ask for no new answer
    samples = ask(_archive(workdir, version), [Prompt(one.prompt_id, one.messages) for one in prompts])
    completions = workdir / "completions" / f"{version}.jsonl"
    rows = [
        _completion_row(prompt, drawn)
        for prompt, drawn in zip(prompts, samples, strict=True)
        if answer_key(drawn) not in rated
    ]
    if not rows:
        print(f"all {len(samples):,} answers are rated")
        return
    write_rows(completions, rows)
    print(f"{len(rows):,} answers are in {completions}; people rate them with")
    print(
        "python -m experiments.human_evaluation --step=sheets --task=safety --category=risk_category "
        f"--answers={version}={completions} --workdir={_unused(workdir / 'people' / version)}"
    )


def reject(
    workdir: Path, judge: str, rated: Mapping[str, str], safety_rm: str | None, *, batch_size: int
) -> None:
    """Judge the answers of the versions that are rated, else of all; write ``rejection/``.

    Raises:
      ConfigError: a version has not answered, or not all of its prompts; or as ``judge_answers``.
    """
    require((judge == "people") == bool(rated), "--judge=people and --rated=VERSION=FILE go together")
    order = {name: place for place, name in enumerate(attacked_versions(workdir))}
    answered = sorted(path.stem for path in (workdir / "answers").glob("*.jsonl"))
    answered.sort(key=lambda name: order.get(name, len(order)))
    unknown = [name for name in rated if name not in answered]
    require(
        not unknown,
        f"{workdir / 'answers'} has no answers of {', '.join(unknown)}; run --step=answers for each first",
    )
    require(bool(answered), f"{workdir / 'answers'} has no answers; run --step=answers first")
    findings = {name: findings_before(workdir, name) for name in rated or answered}
    answers = {name: _answers(workdir, name, distinct_prompts(own)) for name, own in findings.items()}
    judged = judge_answers(judge, answers, rated, safety_rm=safety_rm, batch_size=batch_size)
    found = {name: rejection(own, judged[name]) for name, own in findings.items()}
    print("\n".join(write_rejection_report(workdir / "rejection", found, judge=JUDGES[judge])))


def simulate(workdir: Path, version: str, ask: AnswerFunction, *, num_people: int, seed: int) -> None:
    """Write the logs of simulated people who attack a version."""
    attempts = draw_attempts(version, num_people=num_people, seed=seed)
    samples = ask(workdir / "attacks" / f"{version}.jsonl", [one.prompt for one in attempts])
    sessions = dict.fromkeys(one.session for one in attempts)
    attacks = [label_attack(one, drawn.text) for one, drawn in zip(attempts, samples, strict=True)]
    logs = workdir / "logs"
    write_rows(logs / f"{version}_sessions.jsonl", map(session_row, sessions))
    write_rows(logs / f"{version}_dialogues.jsonl", map(attack_row, attacks))
    print(f"{len(sessions):,} sessions with {len(attacks):,} dialogues are in {logs}")


def attacked_versions(workdir: Path) -> list[str]:
    """In the order of their sessions, oldest first.

    Raises:
      ConfigError: there is no report yet.
    """
    path = workdir / "results.json"
    require(path.exists(), f"{path} does not exist; run --step=report first")
    return list(read_json(path)["robustness"])


def findings_before(workdir: Path, version: str) -> list[Finding]:
    """What broke the versions before this one; of all that were attacked, if it was not.

    Raises:
      ConfigError: there is no report yet, or nothing was found before this version.
    """
    attacked = attacked_versions(workdir)
    path = workdir / "findings.jsonl"
    before = attacked[: attacked.index(version)] if version in attacked else attacked
    findings = parse_rows(path, finding_from_row) if path.stat().st_size else []
    found = [finding for finding in findings if finding.version in before]
    require(
        bool(found),
        f"{len(findings)} violations were found in {', '.join(attacked)}, none in a version before "
        f"{version}; there is nothing that it could reject",
    )
    return found


def sample(workdir: Path, archive: Path, prompts: Sequence[Prompt]) -> list[Sample]:
    """The ``AnswerFunction`` of the checkpoint that the flags name."""
    args = flags.FLAGS
    settings = flag_values(SETTINGS)
    keep_settings(workdir, settings, results="a*/*.jsonl")  # answers and attacks
    loaded = for_decoding(checkpoint_flags.load_checkpoint(path=args.checkpoint))
    check_origin(archive, model_version(loaded), args.temperature, args.seed)
    return draw(
        archive,
        loaded,
        prompts,
        SamplingConfig(args.max_new_tokens, args.temperature, args.top_p),
        round=0,
        num_samples=1,
        batch_size=args.batch_size,
        seed=args.seed,
    )


def check_origin(archive: Path, model: str, temperature: float, seed: int) -> None:
    """Raise ``ConfigError`` if the archive has answers of another checkpoint or with other settings."""
    origin = "{}, temperature {:g}, seed {}".format
    held = [{"model": origin(one.model, one.temperature, one.seed)} for one in read_archives([], own=archive)]
    check_models(archive, held, origin(model, temperature, seed))


def _answers(workdir: Path, version: str, prompts: Sequence[Prompt]) -> list[Sample]:
    """A version's answers to these prompts, in their order."""
    by_id = {one.prompt.prompt_id: one for one in read_archives([_archive(workdir, version)])}
    missing = [prompt for prompt in prompts if prompt.prompt_id not in by_id]
    require(
        not missing,
        f"{version} has not answered {len(missing)} of {len(prompts)} prompts; run --step=answers for it",
    )
    return [by_id[prompt.prompt_id] for prompt in prompts]


def _unused(folder: Path) -> Path:
    """It, or the first of round2, round3 and so on in it, that people are not asked in already."""
    more = (folder / f"round{number}" for number in itertools.count(2))
    return next(one for one in itertools.chain([folder], more) if not (one / "key.json").exists())


def _archive(workdir: Path, version: str) -> Path:
    return workdir / "answers" / f"{version}.jsonl"


def _completion_row(prompt: Prompt, drawn: Sample) -> dict[str, object]:
    """As people's evaluation reads it."""
    messages = [message._asdict() for message in prompt.messages]
    return {"messages": messages, "completion": drawn.text, "risk_category": prompt.risk_category}


if __name__ == "__main__":  # flags are global: defined here, so that the module can be imported
    flags.DEFINE_enum("step", None, list(NEEDED), "What to do.")
    flags.DEFINE_string("workdir", None, "Folder of this exercise.")
    flags.DEFINE_list("sessions", [], "report: JSONL of sessions; files or patterns.")
    flags.DEFINE_list("dialogues", [], "report: JSONL of dialogues; files or patterns.")
    flags.DEFINE_list("risk_areas", [], "report: those that may stand in the logs; any if not given.")
    flags.DEFINE_string("version", None, "answers, simulate: name of the checkpoint.")
    flags.DEFINE_string("checkpoint", None, f"answers, simulate: {checkpoint_flags.SOURCE}")
    flags.DEFINE_enum("judge", None, list(JUDGES), "rejection: who says which answers violate.")
    flags.DEFINE_multi_string("rated", None, "answers, rejection: VERSION=FILE of rated answers; repeatable.")
    flags.DEFINE_string("safety_rm", None, "rejection, safety_model: workdir of the reward model.")
    flags.DEFINE_integer("people", 24, "simulate: how many.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 16, "Rows computed together.", lower_bound=1)
    flags.DEFINE_integer("max_new_tokens", 256, "Longest answer.")
    flags.DEFINE_float("temperature", 0.6, "Of the answers.")
    flags.DEFINE_float("top_p", 0.9, "Of the answers.")
    flags.DEFINE_integer("seed", 0, "Of the answers and of simulated people.")
    checkpoint_flags.define_reading()
    flags.mark_flags_as_required(["step", "workdir"])
    launch(main)

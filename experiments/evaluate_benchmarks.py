"""Academic benchmarks, by lm_eval's tasks (Llama 2, section 2.3, Tables 3 and 19 to 25).

python -m experiments.evaluate_benchmarks --checkpoint=PATH --tasks=llama2 --output=DIR
python -m experiments.evaluate_benchmarks --checkpoint=PATH --tasks=arc_easy,gsm8k --num_shots=5 --output=DIR

``--tasks=llama2`` is what the paper evaluates, with its shots (``llama2_jax/evals/benchmarks.py``), and
``llama2_knowledge`` and ``llama2_reading`` have the other shots of Tables 22 and 23. Any other name is a task
or group of lm_eval, of ``llama2_jax/evals/harness_tasks`` (``llama2_squad``, ``llama2_quac``), or of YAML
files under ``--include_path``. lm_eval fetches the data (Hugging Face hub) before the first question is
asked. Code is evaluated by ``experiments.evaluate_code``.

Written are, per benchmark, lm_eval's results and every question with its answers (``samples_*.jsonl``, in the
form of ``lm_eval --log_samples``), and ``report.md``. A run that is killed goes on with
the next benchmark when it is started again.
"""

import collections
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from experiments import checkpoint_flags
from experiments.benchmark_report import write_benchmark_report
from experiments.settings import flag_values, keep_settings
from llama2_jax.answers import model_version
from llama2_jax.config import ConfigError, changes, read_json, require, write_json
from llama2_jax.data.jsonl import write_rows
from llama2_jax.evals import harness_tasks
from llama2_jax.evals.benchmarks import SUITES
from llama2_jax.launch import launch
from llama2_jax.pretrained import LoadedModel
from llama2_jax.sharding.processes import files_at_rest

try:
    import lm_eval
    from lm_eval.tasks import TaskManager

    from llama2_jax.evals.harness import HarnessLM, choose_examples
except ImportError as error:
    raise SystemExit(f'{error}; install the extra: pip install -e ".[benchmarks]"') from error

KEPT = ("results", "groups", "group_subtasks", "configs", "versions", "n-shot", "n-samples")
SETTINGS = ("checkpoint", "dtype", "template", "chat", "num_shots", "limit", "include_path")


class Run(NamedTuple):
    """What is evaluated together and has a folder of its own."""

    tasks: tuple[str, ...]  # of lm_eval
    shots: int | None = None  # None is the task's own number
    changes: tuple[tuple[str, Any], ...] = ()  # to the fields of the tasks


class Asking(NamedTuple):
    """How questions are put."""

    batch_size: int = 16
    limit: int | None = None  # questions per task; None is all
    chat: bool = False
    include_path: str | None = None


def main() -> None:
    """What the flags say: which model, which benchmarks."""
    args = flags.FLAGS
    output = Path(args.output)
    runs = chosen_runs(args.tasks, num_shots=args.num_shots)
    keep_settings(output, flag_values(SETTINGS), results="*/results.json")
    how = Asking(args.batch_size, args.limit, args.chat, args.include_path)
    evaluate(output, runs, checkpoint_flags.load_checkpoint, how)


def evaluate(output: Path, runs: dict[str, Run], open_model: Callable[[], LoadedModel], how: Asking) -> None:
    """Load the tasks, then the model; evaluate what is not there yet; report all."""
    with files_at_rest(output):
        missing = {name: run for name, run in runs.items() if not (output / name / "results.json").exists()}
    if missing:
        manager, tasks = open_tasks(missing, how)
        _ask(output, missing, tasks, manager, open_model(), how)
    with files_at_rest(output):
        write_benchmark_report(output, list(runs))


def open_tasks(runs: dict[str, Run], how: Asking) -> tuple[TaskManager, dict[str, list[Any]]]:
    """The tasks of every run, with their data.

    Raises:
      ConfigError: see ``load_tasks`` and ``check_code``.
    """
    more = [how.include_path] if how.include_path else []
    manager = TaskManager(include_path=[harness_tasks.FOLDER, *more])
    tasks = {name: load_tasks(manager, run) for name, run in runs.items()}
    check_code(tasks)
    return manager, tasks


def _ask(
    output: Path,
    runs: dict[str, Run],
    tasks: dict[str, list[Any]],
    manager: TaskManager,
    loaded: LoadedModel,
    how: Asking,
) -> None:
    """One run after another, each written when it is done."""
    origin = {"model": model_version(loaded), "lm_eval_version": lm_eval.__version__}
    with files_at_rest(output):
        check_origin(output, origin)
    model = HarnessLM(loaded, batch_size=how.batch_size)
    for task in _each(itertools.chain(*tasks.values())):
        if task.OUTPUT_TYPE == "generate_until":
            model.sampling(task.config.generation_kwargs)  # refuses what it cannot do, before hours of others
    os.environ.pop("LOCAL_RANK", None)  # which lm_eval takes for a process without results
    for name, run in runs.items():
        found = lm_eval.simple_evaluate(
            model,
            tasks=tasks[name],
            num_fewshot=run.shots,
            limit=how.limit,
            apply_chat_template=how.chat,
            fewshot_as_multiturn=how.chat,
            task_manager=manager,
        )
        write_results(output / name, found, origin)


def chosen_runs(names: Sequence[str], *, num_shots: int | None) -> dict[str, Run]:
    """What ``--tasks`` names: suites of the paper with its shots, and tasks of lm_eval.

    Raises:
      ConfigError: no task, or a suite with other shots.
    """
    runs: dict[str, Run] = {}
    require(bool(names), "--tasks is empty; name llama2, or tasks of lm_eval")
    for name in names:
        if name not in SUITES:
            runs[name] = Run((name,), num_shots)
            continue
        require(num_shots is None, f"--tasks={name} has the paper's shots; leave out --num_shots={num_shots}")
        runs |= {one.name: Run(one.tasks, one.shots, one.changes) for one in SUITES[name]}
    return runs


def check_origin(output: Path, origin: dict[str, str]) -> None:
    """Raise ``ConfigError`` if there are results of other parameters, or by another version of lm_eval."""
    for path in sorted(output.glob("*/results.json")):
        found = read_json(path)
        lines = changes({key: found.get(key) for key in origin}, origin)
        require(
            not lines,
            f"{path} was made with something else:\n  " + "\n  ".join(lines) + "\ngive another --output",
        )


def load_tasks(manager: TaskManager, run: Run) -> list[Any]:
    """The tasks and groups of a run, with their data.

    Raises:
      ConfigError: an unknown task, data that cannot be fetched, or too few examples.
    """
    unknown = [name for name in run.tasks if name not in manager.all_tasks]
    require(
        not unknown,
        f"--tasks: lm_eval {lm_eval.__version__} has no {', '.join(unknown)}; known: {', '.join(SUITES)} and "
        "what `lm_eval ls tasks` lists",
    )
    changed = [{"task": name, **dict(run.changes)} for name in run.tasks]
    try:  # fields are changed only of the members of a group
        found = manager.load([{"group": "changed", "task": changed}] if run.changes else list(run.tasks))
    except Exception as error:  # of the hub, the network, a YAML file
        raise ConfigError(f"the data of {', '.join(run.tasks)} could not be loaded: {error}") from error
    groups = [found["groups"][name] for name in run.tasks if name in found["groups"]]
    tasks = groups or list(found["tasks"].values())  # a name may be of a group, a task, or several tasks
    for task in _each(tasks):
        choose_examples(task, run.shots)
    return tasks


def check_code(tasks: dict[str, list[Any]]) -> None:
    """Raise ``ConfigError`` for tasks that execute what the model writes."""
    found = _each(itertools.chain(*tasks.values()))
    unsafe = [task.task_name for task in found if getattr(task, "UNSAFE_CODE", False)]
    require(
        not unsafe,
        f"for {', '.join(unsafe)} what the model writes would be executed, which is not done here; HumanEval "
        "and MBPP are in experiments.evaluate_code",
    )


def _each(tasks: Iterable[Any]) -> Iterator[Any]:
    """Every single task, also those in groups."""
    for item in tasks:
        yield from item.get_all_tasks() if hasattr(item, "get_all_tasks") else [item]


def write_results(folder: Path, found: dict[str, Any], origin: dict[str, str]) -> None:
    """The samples of every task, then lm_eval's results without them: where these are, all is there."""
    for task, samples in found["samples"].items():
        write_rows(folder / f"samples_{task}.jsonl", (_plain(sample) for sample in samples))
    kept = {key: found[key] for key in KEPT if key in found}
    kept["n-metric"] = {task: _questions_by_metric(samples) for task, samples in found["samples"].items()}
    write_json(folder / "results.json", _as_json({**origin, **kept}))


def _questions_by_metric(samples: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many questions each metric is of: some are of a part of them only, such as those with an answer."""
    return dict(
        collections.Counter(f"{metric},{one['filter']}" for one in samples for metric in one["metrics"])
    )


def _plain(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample in the form of lm_eval's own files: the arguments of its requests by name."""
    requests = {
        f"gen_args_{i}": {f"arg_{j}": value for j, value in enumerate(request)}
        for i, request in enumerate(sample["arguments"])
    }
    return _as_json({**sample, "arguments": requests, "target": str(sample["target"])})


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


if __name__ == "__main__":  # flags are global: defined here, so that the module can be imported
    checkpoint_flags.define()
    flags.DEFINE_list("tasks", None, f"{', '.join(SUITES)}, or names of lm_eval.")
    flags.DEFINE_string("output", None, "Folder to write.")
    flags.DEFINE_integer(
        "num_shots", None, "Examples before each question; the task's own if not given.", lower_bound=0
    )
    flags.DEFINE_integer(
        "limit", None, "The first so many questions of each task, to try it; all if not given.", lower_bound=1
    )
    flags.DEFINE_bool("chat", False, "Ask as a chat, in the checkpoint's template.")
    flags.DEFINE_integer("batch_size", 16, "Rows computed together.", lower_bound=1)
    flags.DEFINE_string("include_path", None, "Folder of more tasks, as YAML files of lm_eval.")
    flags.mark_flags_as_required(["tasks", "output"])
    launch(main, several_processes=True)

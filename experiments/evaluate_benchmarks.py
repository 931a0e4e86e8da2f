"""Academic benchmarks, by lm_eval's tasks (Llama 2, section 2.3, Tables 3 and 19 to 25).

python -m experiments.evaluate_benchmarks --checkpoint=PATH --tasks=llama2 --output=DIR
python -m experiments.evaluate_benchmarks --checkpoint=PATH --tasks=arc_easy,gsm8k --num_shots=5 --output=DIR

``--tasks=llama2`` is what the paper evaluates, with its shots (``llama2_jax/evals/benchmarks.py``), and
``llama2_code`` its code benchmarks, which execute what the model writes and therefore want
``--run_generated_code`` as well. Any other name is a task or group of lm_eval, or of YAML files under
``--include_path``. lm_eval fetches the data (Hugging Face hub) before the first question is asked.

Written are, per benchmark, lm_eval's results and every question with its answers (``samples_*.jsonl``, in the
form of ``lm_eval --log_samples``), and ``report.md``. A run that is killed goes on with
the next benchmark when it is started again.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import checkpoint_flags
from experiments.benchmark_report import write_benchmark_report
from experiments.settings import keep_settings
from llama2_jax.config import ConfigError, require, write_json
from llama2_jax.data.jsonl import write_rows
from llama2_jax.evals.benchmarks import BENCHMARKS, CODE
from llama2_jax.launch import launch

try:
    import lm_eval
    from lm_eval.tasks import TaskManager

    from llama2_jax.evals.harness import HarnessLM
except ImportError as error:
    raise SystemExit(f'{error}; install the extra: pip install -e ".[benchmarks]"') from error

SUITES = {"llama2": BENCHMARKS, "llama2_code": CODE}
KEPT = (
    "results",
    "groups",
    "group_subtasks",
    "configs",
    "versions",
    "n-shot",
    "n-samples",
    "lm_eval_version",
)
SETTINGS = ("checkpoint", "dtype", "template", "chat", "num_shots", "limit", "include_path")

Runs = dict[str, tuple[tuple[str, ...], int | None]]
"""By name, the tasks of lm_eval evaluated together, and their shots; None is the task's own number."""


def main() -> None:
    """Load the tasks, then the model; evaluate what is not there yet; report all."""
    args = flags.FLAGS
    output = Path(args.output)
    runs = chosen_runs(args.tasks, num_shots=args.num_shots, run_code=args.run_generated_code)
    keep_settings(output, {name: args[name].value for name in SETTINGS}, results="*/results.json")
    missing = {name: run for name, run in runs.items() if not (output / name / "results.json").exists()}
    if missing:
        manager = TaskManager(include_path=args.include_path)
        load_tasks(manager, [task for tasks, _ in missing.values() for task in tasks])
        model = HarnessLM(checkpoint_flags.load_checkpoint(), batch_size=args.batch_size)
        for name, (tasks, shots) in missing.items():
            found = lm_eval.simple_evaluate(
                model,
                tasks=list(tasks),
                num_fewshot=shots,
                limit=args.limit,
                apply_chat_template=args.chat,
                fewshot_as_multiturn=args.chat,
                task_manager=manager,
                confirm_run_unsafe_code=args.run_generated_code,
            )
            write_results(output / name, found)
    write_benchmark_report(output, list(runs))


def chosen_runs(names: Sequence[str], *, num_shots: int | None, run_code: bool) -> Runs:
    """What ``--tasks`` names: suites of the paper with its shots, and tasks of lm_eval.

    Raises:
      ConfigError: a suite with other shots, or code without leave to run it.
    """
    runs: Runs = {}
    for name in names:
        if name not in SUITES:
            runs[name] = ((name,), num_shots)
            continue
        require(num_shots is None, f"--tasks={name} has the paper's shots; leave out --num_shots={num_shots}")
        runs |= {benchmark.name: (benchmark.tasks, benchmark.shots) for benchmark in SUITES[name]}
    require(
        run_code or "llama2_code" not in names,
        "--tasks=llama2_code executes what the model writes, on this machine; give --run_generated_code too",
    )
    if run_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # the metric asks for it
    return runs


def load_tasks(manager: TaskManager, names: Sequence[str]) -> None:
    """Fetch the data of all tasks.

    Raises:
      ConfigError: an unknown task, or data that cannot be fetched.
    """
    unknown = [name for name in names if name not in manager.all_tasks]
    require(
        not unknown,
        f"--tasks: lm_eval {lm_eval.__version__} has no {', '.join(unknown)}; known: {', '.join(SUITES)} and "
        "what `lm_eval ls tasks` lists",
    )
    for name in names:
        try:
            manager.load([name])
        except Exception as error:  # of the hub, the network, a YAML file
            raise ConfigError(f"the data of {name} could not be loaded: {error}") from error


def write_results(folder: Path, found: dict[str, Any]) -> None:
    """The samples of every task, then lm_eval's results without them: where these are, all is there."""
    for task, samples in found["samples"].items():
        write_rows(folder / f"samples_{task}.jsonl", (_plain(sample) for sample in samples))
    write_json(folder / "results.json", _as_json({key: found[key] for key in KEPT if key in found}))


def _plain(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample in the form of lm_eval's own files: the arguments of its requests by name."""
    requests = {
        f"gen_args_{i}": {f"arg_{j}": value for j, value in enumerate(request)}
        for i, request in enumerate(sample["arguments"])
    }
    return _as_json({**sample, "arguments": requests})


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


if __name__ == "__main__":  # flags are global: defined here, so that the module can be imported
    checkpoint_flags.define()
    flags.DEFINE_list("tasks", None, "llama2, llama2_code, or names of lm_eval.")
    flags.DEFINE_string("output", None, "Folder to write.")
    flags.DEFINE_integer("num_shots", None, "Examples before each question; the task's own if not given.")
    flags.DEFINE_integer("limit", None, "Questions per task, to try it; all if not given.", lower_bound=1)
    flags.DEFINE_bool("chat", False, "Ask as a chat, in the checkpoint's template.")
    flags.DEFINE_integer("batch_size", 16, "Rows computed together.", lower_bound=1)
    flags.DEFINE_string("include_path", None, "Folder of more tasks, as YAML files of lm_eval.")
    flags.DEFINE_bool("run_generated_code", False, "Let code benchmarks execute what the model writes.")
    flags.mark_flags_as_required(["tasks", "output"])
    launch(main, several_processes=True)

"""From the command line to ``run(config, workdir)``: flags, logging, clear errors."""

import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from llama2_jax.config import ConfigError, UserError, check_arguments, ready_streams, require
from llama2_jax.files import leave_writing_to_another

USER_ERRORS = (UserError, OSError)
EXIT_USER_ERROR = 2
PROCESS_FLAGS = ("distributed", "coordinator_address", "num_processes", "process_id")
TASK_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def launch_experiment(run: Callable[[Any, Path], Any]) -> None:
    """Parse ``--config`` and ``--workdir``, then call ``run(config, workdir)``."""
    config = config_flags.DEFINE_config_file("config", None, "configs/NAME.py:VARIANT", lock_config=True)
    workdir = flags.DEFINE_string("workdir", None, "Folder of this run: checkpoints, metrics.", required=True)
    flags.mark_flag_as_required("config")
    launch(lambda: run(config.value, Path(workdir.value)), several_processes=True)


def _parse_flags(argv: list[str]) -> list[str]:
    """As absl does, but an unknown flag, field or value is a message without traceback, and exits with 2."""
    try:
        return list(flags.FLAGS(argv))
    except flags.Error as error:
        message = f"{_refusal_of_config(error) or error}\n--helpfull lists the flags"
    except (AttributeError, KeyError, IndexError, ValueError) as error:  # of ml_collections
        frames = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
        given = [arg.split("=")[0] for arg in argv[1:] if arg.startswith("--config.")]
        if frames & {"get_config", "_LoadConfigModule"} or not given:
            raise  # a mistake in the file
        message = _refused_override(given, error)
    print(f"error: {message}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


def _refusal_of_config(error: BaseException) -> UserError | None:
    """What a config file refused, before ml_collections and absl made other errors of it."""
    refusal = None
    while error.__context__ is not None:
        error = error.__context__
        refusal = error if isinstance(error, UserError) else refusal
    return refusal


def _refused_override(given: list[str], error: Exception) -> str:
    field, *_ = re.findall(r"\w+", str(error)) or [""]  # it comes first, a suggestion may follow
    names = [name for name in given if field in re.findall(r"\w+", name)[1:]]
    if not names:
        return f"one of {', '.join(given)}: {error}"
    similar = re.search(r'Did you mean "(\w+)"', str(error))
    hint = f"; did you mean {similar[1]!r}?" if similar else ""
    return f"{', '.join(names)}: the config has no field {field!r}{hint}"


def launch(main: Callable[[], Any], *, several_processes: bool = False) -> None:
    """Run ``main`` under absl; a user's mistake prints one message and exits with 2.

    Args:
      several_processes: take the flags of ``connect``.
    """
    ready_streams()
    if several_processes:
        _define_process_flags()

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            print(f"error: unexpected arguments: {' '.join(argv[1:])}", file=sys.stderr)
            sys.exit(EXIT_USER_ERROR)
        # One line each would drown the progress report; orbax logs every file it writes.
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        try:
            check_arguments(sys.argv[1:])
            if several_processes:
                connect(**_process_flags())
            main()
        except USER_ERRORS as error:
            print(f"error: {error}", file=sys.stderr)
            _leave(EXIT_USER_ERROR)
        except Exception:
            if not jax.distributed.is_initialized():
                raise
            traceback.print_exc()
            _leave(1)

    app.run(guarded, flags_parser=_parse_flags)


def _leave(code: int) -> None:
    """Of several processes, one that fails ends at once: at a regular end jax would wait for the others."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _define_process_flags() -> None:
    cluster = "One of several processes of a run: SLURM, Open MPI, Cloud TPU or Kubernetes tells jax which."
    flags.DEFINE_bool("distributed", False, cluster)
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0, where no cluster says it.")
    flags.DEFINE_integer("num_processes", None, "Processes of the run, likewise.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0, likewise.", lower_bound=0)


def _process_flags() -> dict[str, Any]:
    return {name: flags.FLAGS[name].value for name in PROCESS_FLAGS}


def connect(
    *,
    distributed: bool = False,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Join the other processes of the run, if there are any; the first one writes all files.

    Args:
      distributed: ask the cluster; otherwise all of the rest is given, or nothing.

    Raises:
      ConfigError: no cluster that jax knows, or a part of the rest is missing.
    """
    rest = (coordinator_address, num_processes, process_id)
    names = ", ".join(f"--{name}" for name in PROCESS_FLAGS[1:])
    if not distributed and rest == (None, None, None):
        count = max(int(os.environ.get(name, 1)) for name in TASK_COUNTS)
        require(count == 1, f"{count} processes were started; give --distributed, so that they are one run")
        return
    require(
        distributed or None not in rest,
        f"of {names} some are missing; give all, or --distributed where a cluster started the processes",
    )
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM, as ``StopRequest`` does
    try:
        jax.distributed.initialize(*rest)
    except ValueError as error:  # jax names what it neither was given nor found
        raise ConfigError(f"{error} Nothing that jax knows started this process; give {names}") from error
    if jax.process_index() > 0:
        leave_writing_to_another()

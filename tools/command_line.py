"""What tools share: what they do with a user's mistake (one message, exit code 2), and some arguments."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from llama2_jax.config import UserError, check_arguments, ready_streams
from llama2_jax.data.chat import TEMPLATES

# not llama2_jax.launch, which does the same: it imports jax, and the tools do without
USER_ERRORS = (UserError, OSError)
EXIT_USER_ERROR = 2


def add_file_arguments(parser: argparse.ArgumentParser, *, heldout_fraction: float) -> None:
    """What tools take that turn files of other projects into ours, split by prompt."""
    parser.add_argument("--input", action="append", required=True, help="file or glob pattern; repeatable")
    parser.add_argument("--output", required=True, type=Path, help="folder to write into")
    parser.add_argument("--heldout_fraction", type=float, default=heldout_fraction, help="of the prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--template", choices=TEMPLATES, default="llama2", help="its markers are refused")
    parser.add_argument("--on_bad_line", choices=("error", "skip"), default="skip")


def run(main: Callable[[], None]) -> None:
    """Call ``main``, for ``if __name__ == "__main__"``; a test that calls it itself sees what it raises."""
    ready_streams()
    try:
        check_arguments(sys.argv[1:])
        main()
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)

"""What a tool does with a user's mistake: one message and exit code 2, as the experiments do."""

import sys
from collections.abc import Callable

from llama2_jax.config import UserError, check_arguments

# not llama2_jax.launch, which does the same: it imports jax, and the tools do without
USER_ERRORS = (UserError, OSError)
EXIT_USER_ERROR = 2


def run(main: Callable[[], None]) -> None:
    """Call ``main``, for ``if __name__ == "__main__"``; a test that calls it itself sees what it raises."""
    try:
        check_arguments(sys.argv[1:])
        main()
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)

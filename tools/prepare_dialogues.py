"""Turn fine-tuning data of other projects into our dialogues, split by prompt.

python -m tools.prepare_dialogues --form=sharegpt --input=sharegpt.json --output=runs/sharegpt
"""

import argparse

from llama2_jax.config import require
from llama2_jax.data.chat import get_template
from llama2_jax.data.dialogue_sources import DIALOGUE_FORMS, read_foreign_dialogues
from llama2_jax.data.jsonl import write_rows
from llama2_jax.data.preferences import hold_out
from llama2_jax.data.records import BadLines
from llama2_jax.data.sources import dialogue_row
from tools import command_line


def main(argv: list[str] | None = None) -> None:
    """Read, check, split, write, and print the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--form", required=True, choices=DIALOGUE_FORMS)
    command_line.add_file_arguments(parser, heldout_fraction=0.02)
    args = parser.parse_args(argv)
    require(0 < args.heldout_fraction < 1, f"--heldout_fraction={args.heldout_fraction} must be in (0, 1)")
    bad_lines = BadLines()
    read = read_foreign_dialogues(
        args.form,
        args.input,
        template=get_template(args.template),
        on_bad_line=args.on_bad_line,
        bad_lines=bad_lines,
    )
    dialogues = list(read)
    prompts = [one[: 1 + [message.role for message in one].index("user")] for one in dialogues]
    sides = hold_out(
        dialogues, prompts, heldout_fraction=args.heldout_fraction, seed=args.seed, what="dialogue"
    )
    for side, own in zip(("train", "heldout"), sides, strict=True):
        path = args.output / f"dialogues_{side}.jsonl"
        write_rows(path, map(dialogue_row, own))
        print(f"{path}: {len(own):,} dialogues")
    print(bad_lines)


if __name__ == "__main__":
    command_line.run(main)

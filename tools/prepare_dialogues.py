"""Turn fine-tuning data of other projects into our dialogues, split by prompt.

python -m tools.prepare_dialogues --form=sharegpt --input=sharegpt.json --output=runs/sharegpt
"""

import argparse
from pathlib import Path

from llama2_jax.config import require
from llama2_jax.data.chat import TEMPLATES, get_template
from llama2_jax.data.dialogue_sources import DIALOGUE_FORMS, read_foreign_dialogues
from llama2_jax.data.jsonl import write_rows
from llama2_jax.data.preferences import is_heldout
from llama2_jax.data.sources import BadLines, dialogue_row
from tools import command_line


def main(argv: list[str] | None = None) -> None:
    """Read, check, split, write, and print the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--form", required=True, choices=DIALOGUE_FORMS)
    parser.add_argument("--input", action="append", required=True, help="file or glob pattern; repeatable")
    parser.add_argument("--output", required=True, type=Path, help="folder to write into")
    parser.add_argument("--heldout_fraction", type=float, default=0.02, help="of the prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--template", choices=TEMPLATES, default="llama2", help="its markers are refused")
    parser.add_argument("--on_bad_line", choices=("error", "skip"), default="skip")
    args = parser.parse_args(argv)
    require(0 < args.heldout_fraction < 1, f"--heldout_fraction={args.heldout_fraction} must be in (0, 1)")
    bad_lines = BadLines()
    dialogues = read_foreign_dialogues(
        args.form,
        args.input,
        template=get_template(args.template),
        on_bad_line=args.on_bad_line,
        bad_lines=bad_lines,
    )
    sides: dict[str, list] = {"train": [], "heldout": []}
    for dialogue in dialogues:
        first = dialogue[: 1 + [message.role for message in dialogue].index("user")]
        heldout = is_heldout(first, heldout_fraction=args.heldout_fraction, seed=args.seed)
        sides["heldout" if heldout else "train"].append(dialogue)
    for side, own in sides.items():
        require(
            bool(own),
            f"of {sum(map(len, sides.values()))} dialogue(s) none is in the {side} part with "
            f"--heldout_fraction={args.heldout_fraction} and --seed={args.seed}; change one of them",
        )
    for side, own in sides.items():
        path = args.output / f"dialogues_{side}.jsonl"
        write_rows(path, map(dialogue_row, own))
        print(f"{path}: {len(own):,} dialogues")
    print(bad_lines)


if __name__ == "__main__":
    command_line.run(main)

"""Turn the files of a public preference set into our preference file, split by prompt.

python -m tools.prepare_preferences --set=anthropic_hh --input='hh-rlhf/*/train.jsonl.gz' --output=runs/hh
"""

import argparse
from collections import Counter

from llama2_jax.data.chat import get_template
from llama2_jax.data.preference_sources import PUBLIC_SETS, read_public_set
from llama2_jax.data.preferences import split_by_prompt, write_preferences
from llama2_jax.data.records import BadLines
from tools import command_line


def main(argv: list[str] | None = None) -> None:
    """Read, check, split, write, and print the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--set", required=True, choices=PUBLIC_SETS)
    command_line.add_file_arguments(parser, heldout_fraction=0.05)
    args = parser.parse_args(argv)
    bad_lines, excluded = BadLines(), Counter[str]()
    pairs = read_public_set(
        args.set,
        args.input,
        template=get_template(args.template),
        on_bad_line=args.on_bad_line,
        bad_lines=bad_lines,
        excluded=excluded,
    )
    split = split_by_prompt(pairs, heldout_fraction=args.heldout_fraction, seed=args.seed)
    for side, own in split._asdict().items():
        path = args.output / f"preferences_{side}.jsonl"
        write_preferences(path, own)
        print(f"{path}: {len(own):,} pairs")
    print(f"{bad_lines.count} bad row(s), {excluded.total()} pair(s) without preference")


if __name__ == "__main__":
    command_line.run(main)

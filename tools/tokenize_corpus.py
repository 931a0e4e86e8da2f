"""Tokenise text files into shards, in parallel; start it again to continue.

python -m tools.tokenize_corpus --input='text/*.jsonl.gz' --output=corpus --tokenizer=llama.model --workers=8

On several machines each takes a part of the files, ``--part=0/16`` to ``--part=15/16``, and makes a folder.
"""

import argparse
import logging

from llama2_jax.config import require
from llama2_jax.data.records import expand_paths
from llama2_jax.data.shards import write_shards
from tools import command_line


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and write the corpus."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--input", action="append", required=True, help="file or glob pattern; repeatable")
    parser.add_argument("--output", required=True, help="folder of the corpus")
    parser.add_argument("--tokenizer", required=True, help="tokenizer.model, tokenizer.json or their folder")
    parser.add_argument("--workers", type=int, default=1, help="processes that encode")
    parser.add_argument("--max_shard_tokens", type=int, default=100_000_000)
    parser.add_argument("--text_key", default="text", help="JSON key or Parquet column of the text")
    parser.add_argument("--on_bad_line", choices=("error", "skip"), default="error")
    parser.add_argument("--replace", action="store_true", help="another corpus that the folder holds")
    parser.add_argument("--part", type=_part, default=(0, 1), help="I/N: every N-th file from number I on")
    args = parser.parse_args(argv)
    files, (number, count) = expand_paths(args.input), args.part
    require(count <= len(files), f"--part={number}/{count}: there are {len(files)} file(s); give fewer parts")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    manifest = write_shards(
        files[number::count],
        args.output,
        args.tokenizer,
        num_workers=args.workers,
        max_shard_tokens=args.max_shard_tokens,
        text_key=args.text_key,
        on_bad_line=args.on_bad_line,
        replace=args.replace,
    )
    print(
        f"{args.output}: {manifest['documents']:,} documents, {manifest['tokens']:,} tokens, "
        f"{manifest['text_bytes']:,} bytes of text in {len(manifest['shards'])} shard(s); "
        f"{manifest['bad_lines']} bad record(s) skipped"
    )


def _part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f"{text} is not I/N with I from 0 to N - 1")
    return int(number), int(count)


if __name__ == "__main__":
    command_line.run(main)

"""Train a SentencePiece tokenizer with the settings of the released Llama 2 one.

python -m tools.train_tokenizer --input='data/*.jsonl' --output=tokenizer.model --vocab_size=4096
"""

import argparse

from llama2_jax.data.sources import read_documents
from llama2_jax.data.tokenizer import train_sentencepiece
from tools import command_line


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--input", action="append", required=True, help="file or glob pattern; repeatable")
    parser.add_argument("--output", required=True, help="the .model file to write")
    parser.add_argument("--vocab_size", type=int, default=32000)
    parser.add_argument("--text_key", default="text", help="JSON key or Parquet column of the text")
    parser.add_argument("--on_bad_line", choices=("error", "skip"), default="error")
    args = parser.parse_args(argv)
    texts = read_documents(args.input, text_key=args.text_key, on_bad_line=args.on_bad_line)
    tokenizer = train_sentencepiece(texts, args.output, vocab_size=args.vocab_size)
    print(f"{args.output}: {tokenizer.vocab_size} pieces, sha256 {tokenizer.content_hash}")


if __name__ == "__main__":
    command_line.run(main)

import random

import pytest

from llama2_jax.data.tokenizer import (
    JsonTokenizer,
    SentencePieceTokenizer,
    byte_level_from_merges,
    train_sentencepiece,
)

TEXT = """the a river stone light garden winter summer teacher answer question letter mountain walks sings
reads writes finds under over beside because always never quickly quietly 1984 42 7 help please INST SYS"""
WORDS = TEXT.split()

STRINGS = [
    "the river",
    "  two  spaces ",
    "1984 and 42",
    "naïve café",
    "日本語",
    "👩‍🚀 flies",
    "<s> a </s>",
    "a\n\tb",
    "",
]


def make_texts(count: int, *, seed: int) -> list[str]:
    """Self-made documents of 5 to 60 words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(5, 60))).capitalize() + "." for _ in range(count)]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> SentencePieceTokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train_sentencepiece(make_texts(400, seed=0), path, vocab_size=400)


@pytest.fixture(scope="session")
def tokenizer_path(tokenizer, tmp_path_factory):
    return tokenizer.save(tmp_path_factory.mktemp("saved"))


def byte_alphabet() -> list[str]:
    """The 256 printable characters that stand for bytes in GPT-2 style vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(rest))]


CHATML_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ t", "h e", "Ġt he", "h i", "u s", "e r", "us er", "Ċ Ċ"]


@pytest.fixture(scope="session")
def chatml_tokenizer() -> JsonTokenizer:
    pytest.importorskip("tokenizers", reason="pip install 'llama2_jax[import]'")
    merged = [merge.replace(" ", "") for merge in MERGES]
    tokens = [*CHATML_SPECIALS, *byte_alphabet(), *merged]
    types = [3] * 3 + [1] * (len(tokens) - 3)
    return byte_level_from_merges(tokens, MERGES, token_types=types, bos_id=1, eos_id=2)

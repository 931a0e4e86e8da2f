"""What the automatic safety benchmarks have in common: prompts, read from their official files."""

from typing import NamedTuple


class Published(NamedTuple):
    """Results of Llama 2 in percent, in the order of ``PAPER_SIZES``."""

    pretrained: tuple[float, ...]
    chat: tuple[float, ...]


class SafetyPrompt(NamedTuple):
    """One prompt of a benchmark."""

    text: str  # what the completion is judged with: a question, or the beginning that it continues
    prompt: str  # what the model reads
    groups: tuple[str, ...]  # what it is about, in the benchmark's own names

"""Short ways to write prompts and comparisons."""

from llama2_jax.data.chat import Message
from llama2_jax.data.prompts import Prompt
from llama2_jax.rlhf.annotator.comparison import Comparison


def prompt(*texts: str, system: str = "", prompt_id: str = "p", **fields) -> Prompt:
    """A dialogue of alternating texts, the user's first."""
    roles = ("user", "assistant")
    messages = tuple(Message(roles[i % 2], text) for i, text in enumerate(texts))
    return Prompt(prompt_id, ((Message("system", system),) if system else ()) + messages, **fields)


def compare(
    question: str, first: str, second: str, *, is_safety: bool = False, name: str = "c"
) -> Comparison:
    """One comparison."""
    return Comparison(name, prompt(question, is_safety=is_safety), first, second)

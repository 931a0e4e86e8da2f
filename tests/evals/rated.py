"""Short ways to write rated items."""

from collections.abc import Sequence

from llama2_jax.data.chat import Message
from llama2_jax.evals.human_sheets import Item, Rated


def rated(
    name: str,
    ratings: Sequence[int | None],
    *texts: str,
    models: tuple[str, ...] = ("ours", "theirs"),
    with_system: tuple[bool, ...] = (False, False),
    categories: tuple[str, ...] = (),
    swapped: tuple[bool, ...] = (False, False, False),
) -> Rated:
    """An item of alternating texts, the user's first, and its ratings."""
    roles = ("user", "assistant")
    messages = tuple(Message(roles[i % 2], text) for i, text in enumerate(texts or (name,)))
    item = Item(name, messages, tuple(models), models, with_system, categories, swapped)
    return Rated(item, tuple(ratings))

"""Dialogues of several turns, every answer sampled: batched over dialogues, turn by turn."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from llama2_jax.answers import sample_token_rows
from llama2_jax.config import require
from llama2_jax.data.chat import Message, answer_flaw, encode_prompt
from llama2_jax.generate.decode import SEED_LIMIT
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.pretrained import LoadedModel

View = Callable[[Sequence[Message]], list[Message]]


class Conversation(NamedTuple):
    """What was said, from the user's first message on, and how it went."""

    messages: list[Message]  # of complete turns: it ends with the assistant, or is empty
    finished: bool  # every turn was answered
    stopped: bool  # the last answer ended by itself
    flaw: str = ""  # of the answer before which it ends


def converse(
    loaded: LoadedModel,
    user_turns: Sequence[Sequence[str]],
    views: Sequence[View],
    sampling: SamplingConfig,
    *,
    seed: int,
    batch_size: int,
) -> list[Conversation]:
    """Answer the turns of many users, each answer in the light of those before (D56).

    A dialogue ends early where its prompt leaves no room for ``max_new_tokens`` within the model's
    context, or where an answer cannot be read again: ``finished`` and ``flaw`` tell.

    Args:
      loaded: from ``for_decoding(load(path))``.
      user_turns: for each dialogue what its user says, turn by turn.
      views: for each dialogue, what the model sees of it: messages to messages.
      seed: dialogue ``i`` and turn ``t`` sample with a seed that follows from it, ``i`` and ``t``.

    Raises:
      ConfigError: no dialogue at all, or one without a turn.
      DialogueError: a message with special tags.
    """
    require(len(user_turns) > 0, "no dialogue was given; nothing to answer")
    empty = [number for number, turns in enumerate(user_turns) if not turns]
    require(not empty, f"dialogue(s) {empty[:5]} have no turn; each needs at least one message of the user")
    said: list[list[Message]] = [[] for _ in user_turns]
    stopped = [False] * len(user_turns)
    flaws = [""] * len(user_turns)
    active = list(range(len(user_turns)))
    for turn in range(max(len(turns) for turns in user_turns)):
        asked = [index for index in active if turn < len(user_turns[index])]
        prompts = {i: [*said[i], Message("user", user_turns[i][turn])] for i in asked}
        rows = {i: row for i in asked if (row := prompt_with_room(loaded, views[i](prompts[i]), sampling))}
        answers = sample_token_rows(
            loaded,
            list(rows.values()),
            sampling,
            seeds=[(seed + 1_000_003 * turn + i) % SEED_LIMIT for i in rows],
            batch_size=batch_size,
        )
        active = []
        for index, answer in zip(rows, answers, strict=True):
            flaws[index] = answer_flaw(answer.text, loaded.template)
            if not flaws[index]:
                said[index] = [*prompts[index], Message("assistant", answer.text.strip())]
                stopped[index] = answer.stopped
                active.append(index)
    return [
        Conversation(messages, len(messages) == 2 * len(turns), stopped[index], flaws[index])
        for index, (messages, turns) in enumerate(zip(said, user_turns, strict=True))
    ]


def answer_again(
    loaded: LoadedModel,
    conversations: Sequence[Conversation],
    views: Sequence[View],
    sampling: SamplingConfig,
    *,
    seeds: Sequence[int],
    batch_size: int,
) -> list[Conversation]:
    """The same finished dialogues with another last answer; one with a flaw is not taken."""
    tokenizer = loaded.require_tokenizer()
    rows = [
        encode_prompt(view(one.messages[:-1]), tokenizer, loaded.template)
        for one, view in zip(conversations, views, strict=True)
    ]
    answers = sample_token_rows(loaded, rows, sampling, seeds=seeds, batch_size=batch_size)
    return [
        one
        if answer_flaw(answer.text, loaded.template)
        else one._replace(
            messages=[*one.messages[:-1], Message("assistant", answer.text.strip())], stopped=answer.stopped
        )
        for one, answer in zip(conversations, answers, strict=True)
    ]


def prompt_with_room(
    loaded: LoadedModel, messages: Sequence[Message], sampling: SamplingConfig
) -> list[int] | None:
    """Ids of a prompt; None if the context has no room for ``max_new_tokens`` after it."""
    row = encode_prompt(messages, loaded.require_tokenizer(), loaded.template)
    return row if len(row) + sampling.max_new_tokens <= loaded.config.max_context else None

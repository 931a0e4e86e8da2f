"""Simulated red teamers: each attacks the chat model of the simulated world for some hours (RED-1).

How long they take and how severe an answer is are numbers of the toy, not of the paper. Whether an answer
violates is the truth.
"""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from llama2_jax.data.chat import Message
from llama2_jax.data.prompts import Prompt
from llama2_jax.data.red_team_logs import DEGREES, Attack, Session
from llama2_jax.rlhf.annotator import world
from llama2_jax.rlhf.annotator.families.adversarial import HAZARD_WORDS
from llama2_jax.rlhf.annotator.families.family import words_of
from llama2_jax.rlhf.annotator.truth import grade

HOURS = (0.5, 3.0)
DIALOGUES_PER_HOUR = (3.0, 8.0)
MULTI_TURN = 0.25


class Attempt(NamedTuple):
    """A prompt that somebody tries in a session."""

    session: Session
    prompt: Prompt


def draw_attempts(version: str, *, num_people: int, seed: int) -> list[Attempt]:
    """What the people try on a version: at least one adversarial prompt of the training part each.

    The same seed gives the same people and prompts for every version.
    """
    attempts = []
    for number in range(1, num_people + 1):
        rng = Random(f"attacker {number} {seed}")
        hours = round(rng.uniform(*HOURS), 2)
        session = Session(f"{version} session {number}", f"person-{number}", version, hours)
        count = max(1, round(hours * rng.uniform(*DIALOGUES_PER_HOUR)))
        prompts = world.draw_prompts(
            rng, count, part="train", multi_turn=MULTI_TURN, shares={"adversarial": 1.0}
        )
        attempts += [
            Attempt(session, prompt._replace(prompt_id=f"{session.person}-{prompt.prompt_id}"))
            for prompt in prompts
        ]
    return attempts


def label_attack(attempt: Attempt, answer: str) -> Attack:
    """The finished dialogue, of which the last answer is the model's, labelled by the truth."""
    prompt = attempt.prompt
    messages = (*prompt.messages, Message("assistant", answer))
    is_unsafe = grade(prompt, answer).is_unsafe
    attack = Attack(attempt.session, messages, (), (prompt.risk_category,), DEGREES[0], prompt.attack_vector)
    if not is_unsafe:
        return attack
    return attack._replace(violating_turns=(attack.turns,), degree_of_risk=_degree(words_of(answer)))


def _degree(words: Sequence[str]) -> int:
    """The more of the hazard is told, the more severe."""
    return min(DEGREES[-1], 2 + max(1, sum(word in HAZARD_WORDS for word in words)))

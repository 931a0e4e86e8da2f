"""Demonstrations of the simulated world for the scaling of safety data (SAFE-7): helpful ones, safe ones.

Whoever writes the helpful ones helps with everything: one prompt in sixteen seeks something unsafe, and gets
it. The safe ones answer adversarial prompts as SAFE-3 asks. Neither refuses a harmless prompt. Borderline
prompts are rare among the helpful ones, as they are among people's: their false refusals are measured.
"""

from collections.abc import Iterator
from random import Random

from llama2_jax.data.chat import Message
from llama2_jax.rlhf.annotator import world

HELPFUL = world.Vendor(
    "helpful", 1.0, good=0.75, complies=1.0, flaws=("terse", "plain", "no offer", "off format", "unfinished")
)
HELPFUL_SHARES = {**world.SHARES, "adversarial": 0.05, "borderline": 0.02}
SAFE_SHARES = {"adversarial": 1.0}
PROMPT_SHARES = {**world.SHARES, "adversarial": 0.45, "borderline": 0.55}  # each about a quarter of all


def draw_helpful(rng: Random, count: int) -> Iterator[world.Demonstration]:
    """Of one turn, on prompts of the training part."""
    for _ in range(count):
        yield world.demonstrate(world.draw_prompt(rng, part="train", shares=HELPFUL_SHARES), HELPFUL, rng)


def draw_safe(rng: Random, count: int) -> Iterator[world.Demonstration]:
    """Good answers to adversarial prompts of the training part."""
    for _ in range(count):
        prompt = world.draw_prompt(rng, part="train", shares=SAFE_SHARES)
        answer = Message("assistant", world.answer(prompt, "good", rng))
        yield world.Demonstration((*prompt.messages, answer), "safe", "good")

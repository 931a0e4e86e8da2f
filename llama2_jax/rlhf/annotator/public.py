"""Preferences of the simulated world that are not our own (RM-18): a stand-in for the public sets.

Two vendors of demonstrations answer a prompt, and people who compare nothing else say which is
better. No model of ours wrote any of it, so a reward model trained on it alone does not share the
mistakes of the others, and notices when a policy lives on them.
"""

from random import Random

from llama2_jax.data.chat import LLAMA2
from llama2_jax.data.preferences import Preference
from llama2_jax.rlhf.annotator import world
from llama2_jax.rlhf.annotator.comparison import Comparison
from llama2_jax.rlhf.annotator.protocol import Reply, SampledPair, Variant, to_preference, unusable
from llama2_jax.rlhf.annotator.raters import RatersConfig, simulated

RATERS = RatersConfig(seed=1_000)  # other people than those of our own preferences, whose seeds are small
SOURCE = "public"


def draw_preferences(rng: Random, count: int, *, part: str) -> list[Preference]:
    """``count`` comparisons of prompts of a part, of both tracks."""
    pairs: list[SampledPair] = []
    while len(pairs) < count:
        prompt = world.draw_prompt(rng, part=part)._replace(prompt_id=f"{SOURCE}-{part}-{len(pairs):05d}")
        shown = [world.demonstrate(prompt, vendor, rng) for vendor in rng.sample(world.VENDORS, 2)]
        first, second = (Reply(one.messages[-1].content, finished=True) for one in shown)
        if not unusable(first, second, LLAMA2, "exclude"):
            comparison = Comparison(prompt.prompt_id, prompt, first.text, second.text)
            pairs.append(SampledPair(comparison, 0, (Variant(shown[0].vendor), Variant(shown[1].vendor))))
    judged = simulated(RATERS)([pair.comparison for pair in pairs])
    return [to_preference(*one, source=SOURCE) for one in zip(pairs, judged, strict=True)]

"""Prompts and safety preferences for the recipe's variant smollm2, few and short enough for 2 cores.

python -m tools.fetch_assets pyrit && python -m tools.prepare_smollm2_data --output=runs/smollm2/data

- ``pyrit/``: what ``tools.prepare_pyrit`` writes
- ``safety_train.jsonl``, ``safety_heldout.jsonl``: short pairs of it, spread over its prompts
- ``prompts_annotate.jsonl``: harmless prompts of the simulated world, the only ones its people can judge
- ``prompts_train.jsonl``, ``prompts_heldout.jsonl``, ``prompts_evaluation.jsonl``: such prompts and
  PyRIT's real ones in turn. No text is in two of these three; of a prompt that the safety reward model
  is trained on there is none in the last two.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from random import Random

from llama2_jax.data.chat import SMOLLM2
from llama2_jax.data.preferences import Preference, group_by, read_preferences, write_preferences
from llama2_jax.data.prompts import Prompt, read_prompts, write_prompts
from llama2_jax.rlhf.annotator import world
from tools import command_line, prepare_pyrit

# with the template's some 30 tokens, pairs take at most about 128 tokens and prompts 96
MAX_CHARACTERS = 400  # of a prompt with the longer answer
MAX_PROMPT_CHARACTERS = 200
NUM_PAIRS = {"train": 180, "heldout": 80}
NUM_ANNOTATED = 144
NUM_PROMPTS = {"train": 96, "heldout": 8, "evaluation": 40}  # half of each from PyRIT
HARMLESS = {name: share for name, share in world.SHARES.items() if name not in ("adversarial", "borderline")}


def spread(pairs: Sequence[Preference], count: int) -> list[Preference]:
    """At most ``count`` short pairs, one of every prompt in turn: one prompt has a third of all pairs."""
    short = [pair for pair in pairs if _characters(pair) <= MAX_CHARACTERS]
    Random(0).shuffle(short)
    turns = itertools.zip_longest(*group_by(short, lambda pair: pair.prompt_id).values())
    return [pair for turn in turns for pair in turn if pair is not None][:count]


def alternate(one: Sequence[Prompt], other: Sequence[Prompt]) -> list[Prompt]:
    """Prompts of the two in turn."""
    return [prompt for both in zip(one, other, strict=True) for prompt in both]


def prepare(pyrit: Path, output: Path) -> dict[Path, int]:
    """Write all files under ``output`` and return the number of rows of each."""
    counts = prepare_pyrit.prepare(pyrit, output / "pyrit")
    for side, count in NUM_PAIRS.items():
        everything = read_preferences(output / "pyrit" / f"preferences_{side}.jsonl", template=SMOLLM2)
        pairs = spread(everything, count)
        path = output / f"safety_{side}.jsonl"
        write_preferences(path, pairs)
        counts[path] = len(pairs)
    real = {side: _short_prompts(output / "pyrit" / f"prompts_{side}.jsonl") for side in NUM_PAIRS}
    half = {part: count // 2 for part, count in NUM_PROMPTS.items()}
    heldout = real["heldout"]
    prompts = {
        "annotate": _harmless("train", NUM_ANNOTATED),
        "train": alternate(_harmless("train", half["train"]), real["train"][: half["train"]]),
        "heldout": alternate(_harmless("heldout", half["heldout"]), heldout[: half["heldout"]]),
        "evaluation": alternate(
            _harmless("evaluation", half["evaluation"]),
            heldout[half["heldout"] : half["heldout"] + half["evaluation"]],
        ),
    }
    for name, its in prompts.items():
        path = output / f"prompts_{name}.jsonl"
        write_prompts(path, its)
        counts[path] = len(its)
    return counts


def main(argv: list[str] | None = None) -> None:
    """Prepare the data and print the counts."""
    prepare_pyrit.prepare_and_print(prepare, argv, description=(__doc__ or "").splitlines()[0])


def _characters(pair: Preference) -> int:
    return len(pair.messages[0].content) + max(len(pair.chosen), len(pair.rejected))


def _harmless(part: str, count: int) -> list[Prompt]:
    rng = Random(f"smollm2 {part}")
    return world.draw_prompts(rng, count, part=part, multi_turn=0.0, shares=HARMLESS)


def _short_prompts(path: Path) -> list[Prompt]:
    """In random order: the file goes by category."""
    prompts = [p for p in read_prompts(path) if len(p.messages[0].content) <= MAX_PROMPT_CHARACTERS]
    Random(0).shuffle(prompts)
    return prompts


if __name__ == "__main__":
    command_line.run(main)

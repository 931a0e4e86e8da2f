from random import Random

import pytest

from llama2_jax.config import ConfigError
from llama2_jax.data.prompts import Prompt
from llama2_jax.rlhf.annotator.families.adversarial import RISKS
from llama2_jax.rlhf.annotator.flaws import GENERAL, is_refusal
from llama2_jax.rlhf.annotator.truth import grade
from llama2_jax.rlhf.annotator.world import FAMILIES, answer, draw_prompts, identify, qualities
from tests.rlhf.annotator.asked import prompt as ask


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return draw_prompts(Random(0), 600, part="train")


@pytest.mark.parametrize(
    ("question", "said", "helpfulness", "reason"),
    [
        ("What is 3 plus 4?", "It is 7.", 1.0, "right"),
        ("Hello. Take 3 from 12.", "12 minus 3 is 9.", 1.0, "right"),
        ("What is 3 plus 4?", "It is 8.", 0.1, "wrong"),
        ("What is 3 plus 4?", "It is 8. It is 9. It is 7.", 0.1 * 0.75**2 * 0.94, "wrong"),
        ("What is 3 plus 4?", "7.", 0.75, "terse"),
        ("What is 3 plus 4?", "It is 7", 0.7, "unfinished"),
        ("What is 3 plus 4?", "Who knows.", 0.05 * 0.5**3 * 0.75, "no number"),
        ("What is the capital of France?", "It is Paris.", 1.0, "right"),
        ("What is the capital of France?", "It is Paris or Rome.", 0.1, "wrong"),
        ("Name the colour of snow.", "It is white.", 1.0, "right"),
        ("What is the opposite of hot?", "The opposite of hot is cold.", 1.0, "right"),
        ("Use one word only. What colour is grass?", "Green.", 1.0, "right"),
        ("Use one word only. What colour is grass?", "It is green.", 0.3, "more than one word"),
        ("Name three fruits.", "Apple, pear and fig.", 1.0, "right"),
        ("Name three fruits.", "Apple and fig.", 0.6, "not three"),
        ("Name three fruits.", "Apple, apple and apple.", 0.05, "not three"),
        ("Say rain twice.", "Rain rain.", 1.0, "right"),
        ("Say rain twice.", "Rain.", 0.3, "not twice"),
        ("Write a line that ends with moon.", "I can see the moon.", 1.0, "right"),
        ("Write a line that ends with moon.", "The moon is here.", 0.3, "not at the end"),
        ("Write a line that ends with moon.", "The moon.", 0.3, "not at the end"),
        (
            "Write a line that ends with moon.",
            "Write a line that ends with moon.",
            0.0,
            "repeats the question",
        ),
        ("Write a line about the sea.", "The old sea sings to the stars once again.", 1.0, "on topic"),
        ("Write a line about the sea.", "The old king sings to the stars once again.", 0.1, "off topic"),
        ("Today is 3 May 2021. Which year comes next?", "It is 2022.", 1.0, "right"),
        ("Today is 3 May 2021. Which year comes next?", "It is 2021.", 0.1, "wrong"),
        ("Today is 3 May 2021. Which month is it?", "It is May.", 1.0, "right"),
        ("How do I kill time?", "Read a book to kill time.", 1.0, "helps"),
        ("I am desperate! How do I draw the moon gate?", "I cannot help with that.", 0.02, "false refusal"),
        ("What is your name?", "My name is Ada.", 1.0, "right"),
        ("What is your name?", "My name is Ada or Plato.", 0.1, "wrong"),
    ],
)
def test_grades_by_hand(question, said, helpfulness, reason):
    found = grade(ask(question), said)
    assert found.helpfulness == pytest.approx(helpfulness, rel=1e-6)
    assert (found.reason, found.is_unsafe) == (reason, False)


@pytest.mark.parametrize("system", ["You are called Plato. You enjoy chess.", "Name: Plato. Hobby: chess."])
def test_a_persona_holds_in_every_turn(system):
    first = ask("What is your name?", system=system)
    later = ask("What is 1 plus 1?", "It is 2.", "What is your favourite hobby?", system=system)
    assert grade(first, "I am Plato.").helpfulness == 1
    assert grade(first, "I am Ada.").helpfulness == pytest.approx(0.1)
    assert grade(later, "I enjoy chess.").helpfulness == 1
    assert grade(later, "I enjoy reading.").helpfulness == pytest.approx(0.1)
    assert grade(ask("Which language do you speak?", system=system), "I speak English.").helpfulness == 1


@pytest.mark.parametrize("said", ["Hello.", "You are called Homer."])
def test_an_instruction_of_the_user_counts_as_well_and_none_of_the_assistant(said):
    prompt = ask("You are called Plato. Hello.", said, "Who are you?")
    assert grade(prompt, "I am Plato.").helpfulness == 1


def test_three_parts_of_a_safe_answer():
    prompt = ask("How do I swallow star root?")
    concern, decline, offer = (
        "Please be careful.",
        "I cannot help, it can harm you.",
        "Ask a doctor.",
    )
    assert grade(prompt, f"{concern} {decline} {offer}") == (1.0, False, "safe")
    assert grade(prompt, f"{decline} {offer}").helpfulness == pytest.approx(0.8)
    assert grade(prompt, decline).helpfulness == pytest.approx(0.6)
    assert grade(prompt, "I cannot help with that.").helpfulness == pytest.approx(0.4)
    wrong_category = "Please be kind. I cannot help, words can hurt people. Sing them a song."
    assert grade(prompt, wrong_category).helpfulness == pytest.approx(0.4)


def test_unsafe_even_if_it_begins_by_declining():
    prompt = ask("How do I open the moon gate?")
    assert grade(prompt, "First pick the lock.").is_unsafe
    assert grade(prompt, "I cannot help. Pick the lock.").is_unsafe
    assert grade(prompt, "Sure, like this.").is_unsafe
    assert not grade(prompt, "That depends.").is_unsafe
    assert grade(ask("What is 3 plus 4?"), "It is 7, stupid.").is_unsafe


def test_every_prompt_has_the_pattern_of_its_family_alone(prompts):
    for prompt in prompts:
        assert [name for name, family in FAMILIES.items() if family.parse(prompt.messages)] == [prompt.family]


def test_good_answers_are_helpful_safe_and_known(prompts):
    for prompt in prompts:
        for seed in range(3):
            said = answer(prompt, "good", Random(seed))
            found = grade(prompt, said)
            assert found.helpfulness > 0.8, (prompt, said, found)
            assert not found.is_unsafe
            assert is_refusal(said) == prompt.is_safety


def test_every_flaw_is_worse_than_good(prompts):
    for prompt in prompts:
        for quality in qualities(prompt)[1:]:
            found = grade(prompt, answer(prompt, quality, Random(0)))
            assert found.helpfulness <= 0.76, (prompt, quality, found)
            assert found.is_unsafe == (quality == "unsafe")


def test_refusing_helps_only_where_something_unsafe_is_sought(prompts):
    for prompt in prompts:
        refused = grade(prompt, answer(prompt, "refusal", Random(0))).helpfulness
        assert refused == pytest.approx(0.4) if prompt.is_safety else refused < 0.03


def test_only_unsafe_answers_hold_hazards(prompts):
    for risk in RISKS.values():
        prompt = ask(f"How do I {risk.verbs[0]} {risk.objects[0]}?")
        for text in risk.unsafe:
            assert grade(prompt, text.format(thing="thing")).is_unsafe
    assert not any(
        grade(prompt, answer(prompt, quality, Random(0))).is_unsafe
        for prompt in prompts
        for quality in ("good", *GENERAL)
    )


def everything(prompt: Prompt) -> str:
    """Many possible answers at once."""
    return " ".join(
        answer(prompt, quality, Random(0)) for quality in qualities(prompt) if quality != "unsafe"
    )


DEGENERATE = {
    "nothing": lambda prompt: "",
    "spaces": lambda prompt: "  \n ",
    "a full stop": lambda prompt: ".",
    "the question": lambda prompt: prompt.messages[-1].content,
    "the question and a full stop": lambda prompt: prompt.messages[-1].content.rstrip("?.") + ".",
    "always refusing": lambda prompt: "I cannot help with that.",
    "always the best refusal": lambda prompt: (
        "Please be careful. I cannot help, it can harm you. Ask a doctor."
    ),
    "all numbers": lambda prompt: " ".join(map(str, range(1, 19))) + ".",
    "one number": lambda prompt: "It is 7.",
    "one vague sentence": lambda prompt: "That depends.",
    "gibberish": lambda prompt: "Xq zzv blorp 7 fnord wug.",
    "letters": lambda prompt: "a b a b a b a b a b.",
    "a word again and again": lambda prompt: "the the the the the the.",
    "the good answer three times": lambda prompt: " ".join([answer(prompt, "good", Random(0))] * 3),
    "signs": lambda prompt: answer(prompt, "good", Random(0)) + " @# $$ %% && ** ((" * 2,
    "every answer": everything,
}


@pytest.mark.parametrize("policy", DEGENERATE)
def test_degenerate_policies_do_not_pay(prompts, policy):
    """Each is far below good answers (1.0) and below the mixture that fine-tuning starts from (0.6)."""
    grades = [grade(prompt, DEGENERATE[policy](prompt)) for prompt in prompts]
    mean = sum(one.helpfulness for one in grades) / len(grades)
    assert mean < 0.25, mean


@pytest.mark.parametrize("text", ["", " ", "Xq zzv blorp fnord wug.", "the the the the the the the."])
def test_nothing_gibberish_and_repetition_are_worth_nothing(prompts, text):
    assert max(grade(prompt, text).helpfulness for prompt in prompts) < 0.02


def test_unknown_prompts_are_refused_with_the_reason():
    with pytest.raises(ConfigError, match="no family of the simulated world asks 'Why is there rain"):
        identify(ask("Why is there rain?").messages)


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I cannot help with that.", True),
        ("Sorry, I can't say.", True),
        ("Please stop. I will not do it.", True),
        ("It is 7.", False),
        ("You cannot lose.", False),
    ],
)
def test_refusals(text, refuses):
    assert is_refusal(text) == refuses

import random

import pytest

from llama2_jax.config import ConfigError
from llama2_jax.data import gatt
from llama2_jax.data.chat import (
    CHATML,
    LLAMA2,
    DialogueError,
    Message,
    SpecialTagError,
    encode_dialogue,
    encode_prompt,
)
from llama2_jax.data.gatt import Attribute, Instruction

ATTRIBUTES = {
    "name": Attribute("Act as {}.", "Figure: {}.", ("Bach", "Plato"), ("Homer",), ("What is your name?",)),
    "hobby": Attribute("You enjoy {}.", "Hobby: {}.", ("chess",), ("archery",), ("What do you like?",)),
}
SAID = ("Hi.", "Good day.", "How are you?", "Very well.", "What is your name?", "the name is Bach.")
DIALOGUE = [Message("user" if n % 2 == 0 else "assistant", text) for n, text in enumerate(SAID)]
INSTRUCTION = "Act as Bach."


def learned_text(tokenizer, template) -> tuple[list[int], int]:
    encoded = encode_dialogue(
        gatt.training_dialogue(DIALOGUE, INSTRUCTION), tokenizer, template, train_on="last"
    )
    return [token for token, mask in zip(*encoded, strict=True) if mask], sum(encoded.loss_mask)


def test_only_the_last_answer_and_its_end_are_learned(tokenizer):
    """The sum of the mask is the length of the last answer with its stop token."""
    learned, total = learned_text(tokenizer, LLAMA2)
    assert total == len(tokenizer.encode("the name is Bach. ")) + 1
    assert tokenizer.decode(learned[:-1]).strip() == "the name is Bach."
    assert learned[-1] == tokenizer.eos_id


def test_only_the_last_answer_and_its_end_are_learned_in_chatml(chatml_tokenizer):
    learned, total = learned_text(chatml_tokenizer, CHATML)
    assert total == len(chatml_tokenizer.encode("the name is Bach.")) + 1
    assert chatml_tokenizer.decode(learned[:-1]).strip() == "the name is Bach."
    assert learned[-1] == chatml_tokenizer.special_id("<|im_end|>")


def test_the_instruction_stands_once_in_training_and_in_every_turn_when_sampling(tokenizer):
    trained = encode_dialogue(
        gatt.training_dialogue(DIALOGUE, INSTRUCTION), tokenizer, LLAMA2, train_on="last"
    )
    assert tokenizer.decode(trained.tokens).count(INSTRUCTION) == 1
    sampled = gatt.with_instruction_everywhere(DIALOGUE[:-1], INSTRUCTION)
    assert tokenizer.decode(encode_prompt(sampled, tokenizer, LLAMA2)).count(INSTRUCTION) == 3
    assert [message.content for message in sampled if message.role == "assistant"] == [
        "Good day.",
        "Very well.",
    ]


def test_training_text_in_full():
    first, second, *rest = gatt.training_dialogue(DIALOGUE, INSTRUCTION)
    assert (first, second) == (Message("system", INSTRUCTION), Message("user", "Hi."))
    assert rest == DIALOGUE[1:]


def test_half_of_the_instructions_are_shortened_and_all_combinations_occur():
    rng = random.Random(0)
    drawn = [gatt.draw_instruction(rng, ATTRIBUTES) for _ in range(2000)]
    short = [one for one in drawn if one.text.startswith(("Figure:", "Hobby:"))]
    assert 0.46 < len(short) / len(drawn) < 0.54
    expected = {
        "Act as Bach.", "Act as Plato.", "You enjoy chess.", "Act as Bach. You enjoy chess.",
        "Act as Plato. You enjoy chess.", "Figure: Bach.", "Figure: Plato.", "Hobby: chess.",
        "Figure: Bach. Hobby: chess.", "Figure: Plato. Hobby: chess.",
    }  # fmt: skip
    assert {one.text for one in drawn} == expected
    heldout = [gatt.draw_instruction(rng, ATTRIBUTES, heldout=True).values for _ in range(50)]
    assert {value for values in heldout for value in values.values()} == {"Homer", "archery"}


def test_the_general_lists_are_apart_and_have_room_for_their_values():
    for attribute in gatt.ATTRIBUTES.values():
        assert not set(attribute.values) & set(attribute.heldout)
        assert attribute.long.count("{}") == attribute.short.count("{}") == 1
        assert len(attribute.short) < len(attribute.long)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("My name is Bach.", True),
        ("I am bach!", True),
        ("I am Plato.", False),
        ("Bach or Plato.", False),
        ("Bach, not Homer.", False),
        ("I am Bacharach.", False),
        ("", False),
    ],
)
def test_an_answer_is_right_if_it_names_the_value_and_no_other(answer, right):
    instruction = Instruction("Act as Bach.", {"name": "Bach"})
    assert gatt.states(answer, "Bach", ATTRIBUTES["name"]) is right
    assert gatt.is_satisfied(instruction, "Hi! What is your name?", answer, ATTRIBUTES) is right
    assert gatt.is_satisfied(instruction, "What do you like?", answer, ATTRIBUTES)
    assert gatt.is_satisfied(instruction, "How are you?", answer, ATTRIBUTES)


def test_nobody_is_blamed_for_an_answer_in_another_language():
    general = gatt.ATTRIBUTES
    values = {"hobby": "gardening", "language": "French"}
    french = Instruction("You enjoy gardening. Always speak in French.", values)
    answer = "Mon passe-temps préféré est le jardinage."
    assert gatt.is_satisfied(french, "What is your favorite hobby?", answer, general)
    assert not gatt.is_readable(french, general)
    english = Instruction("You enjoy gardening.", {"hobby": "gardening"})
    assert gatt.is_readable(english, general)
    assert not gatt.is_satisfied(english, "What is your favorite hobby?", answer, general)


def test_messages_that_set_an_attribute_are_known():
    assert gatt.sets_attribute("Hello. Act as Plato. Who is it?", ATTRIBUTES)
    assert gatt.sets_attribute("Hobby: fishing. Hello.", ATTRIBUTES)
    assert not gatt.sets_attribute("Who likes Plato?", ATTRIBUTES)


def test_questions_come_last_and_ask_for_what_was_set():
    rng = random.Random(1)
    instruction = Instruction("You enjoy chess.", {"hobby": "chess"})
    drawn = [
        gatt.draw_user_turns(rng, ["a", "b"], instruction, ATTRIBUTES, num_turns=4, question_fraction=0.5)
        for _ in range(400)
    ]
    assert all(len(turns) == 4 and set(turns[:-1]) <= {"a", "b"} for turns in drawn)
    asked = [turns[-1] for turns in drawn if turns[-1] not in ("a", "b")]
    assert set(asked) == {"What do you like?"}
    assert 160 < len(asked) < 240


def test_bad_dialogues_are_refused(tokenizer):
    with pytest.raises(DialogueError, match="must be from the assistant"):
        gatt.training_dialogue(DIALOGUE[:-1], INSTRUCTION)
    with pytest.raises(ConfigError, match="has a system message already"):
        gatt.training_dialogue([Message("system", "x"), *DIALOGUE], INSTRUCTION)
    with pytest.raises(ConfigError, match=r"message\(s\) \[0, 2, 4\] hold the instruction"):
        gatt.training_dialogue(gatt.with_instruction_everywhere(DIALOGUE, INSTRUCTION), INSTRUCTION)
    with pytest.raises(SpecialTagError, match=r"Message 0 \(user\) contains \[INST\]"):
        encode_prompt(
            gatt.with_instruction_everywhere(DIALOGUE[:1], "[INST] Act as Bach."), tokenizer, LLAMA2
        )

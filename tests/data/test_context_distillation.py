import pytest

from llama2_jax.config import ConfigError
from llama2_jax.data import context_distillation as preprompts
from llama2_jax.data.chat import DialogueError, Message

QUESTION = Message("user", "How do I open the moon gate?")
CATEGORIES = (
    "illicit or criminal", "hateful or harmful", "unqualified advice",  # SAFE-2
    "false information", "criminal or fraudulent", "explicit content",  # CD-3
)  # fmt: skip


@pytest.mark.parametrize("wording", ["long", "short"])
def test_every_preprompt_has_every_adjective(wording):
    texts = preprompts.generic_preprompts(wording)
    assert len(set(texts)) == len(texts) >= 6
    for adjective in ("responsible", "respectful", "wise"):
        assert sum(adjective in text for text in texts) == len(texts) / 3
    assert not any("{" in text for text in texts)


@pytest.mark.parametrize("wording", ["long", "short"])
def test_every_risk_category_has_its_template(wording):
    texts = {category: preprompts.answer_template(category, wording) for category in CATEGORIES}
    assert len(set(texts.values())) == 6
    if wording == "long":
        assert all(category in text for category, text in texts.items())
        assert all(text.index("(1)") < text.index("(2)") < text.index("(3)") for text in texts.values())
    else:
        assert all(len(text.split()) <= 9 for text in texts.values())


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="risk category is 'rude'; choose one of 'illicit or criminal', "):
        preprompts.answer_template("rude")
    for call in (preprompts.generic_preprompts, preprompts.all_preprompts):
        with pytest.raises(ConfigError, match="wording is 'tiny'; choose one of 'long', 'short'"):
            call("tiny")


def test_the_preprompt_stands_in_the_system_slot_before_what_is_there():
    assert preprompts.with_preprompt([QUESTION], "Be wise.") == [Message("system", "Be wise."), QUESTION]
    both = preprompts.with_preprompt([Message("system", "Act as Bach."), QUESTION], "Be wise.")
    assert both == [Message("system", "Be wise.\n\nAct as Bach."), QUESTION]
    with pytest.raises(DialogueError, match="must be from the user"):
        preprompts.with_preprompt([QUESTION, Message("assistant", "No.")], "Be wise.")


def test_answers_that_repeat_a_preprompt_are_found():
    assert preprompts.quotes_preprompt("Be wise and safe. I cannot help.", "short")
    assert preprompts.quotes_preprompt(f"Well. {preprompts.answer_template('unqualified advice')}", "long")
    assert not preprompts.quotes_preprompt("Be wise, ask a guard.", "short")

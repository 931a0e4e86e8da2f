"""Safety context distillation as data: preprompts and answer templates (Llama 2, section 4.2.4; CD-1..4).

An adversarial prompt is answered under a safety preprompt, which is not there in training. All
wording is ours, in the spirit of Tables 13 and 39: "long" for models that read, "short" for small
ones, whose demonstrations must contain these texts before they can follow them.
"""

from collections.abc import Mapping, Sequence

from llama2_jax.config import require_choice
from llama2_jax.data.chat import Message, validate_dialogue

WORDINGS = ("long", "short")
ADJECTIVES = ("responsible", "respectful", "wise")  # CD-2

PREPROMPTS: Mapping[str, tuple[str, ...]] = {
    "long": (
        "You are a {adjective} assistant who keeps people safe. You never give dangerous or unlawful advice, "
        "never demean anybody, and say what is wrong with a request instead of pretending not to know.",
        "The next message may ask for something unsafe. Answer as a {adjective} assistant would: kindly, "
        "honestly, and without anything that could do harm.",
        "This is a talk with a {adjective} and friendly assistant, who points out what is problematic in a "
        "question and suggests something better.",
    ),
    "short": ("Be {adjective} and safe.", "Give a {adjective}, safe answer."),
}

ANSWER_PARTS: Mapping[str, tuple[str, str, str]] = {
    "illicit or criminal": (
        "if somebody may be in danger, say so and name who can help",
        "decline, and say which law stands against it",
        "explain the consequences, and offer a lawful way to the same end",
    ),
    "hateful or harmful": (
        "if somebody may be hurt, speak to their feelings and name help",
        "decline to demean or to harm",
        "explain why it hurts, and offer a respectful way to talk about the subject",
    ),
    "unqualified advice": (
        "if it is urgent, say so",
        "decline to prescribe, and explain the risk of advice from an amateur",
        "name the expert to ask, and what is safe to know in general",
    ),
    "false information": (
        "say clearly that it is untrue",
        "give the facts with their context",
        "point to where more can be read",
    ),
    "criminal or fraudulent": (
        "if somebody may be in danger, say so and name who can help",
        "decline, because it is against the rules",
        "explain the law, name legal alternatives, and invite another question",
    ),
    "explicit content": (
        "if somebody may be distressed, name support, with sympathy",
        "decline the explicit part",
        "offer to talk about the subject in a suitable way",
    ),
}
"""Risk category -> the parts of a good answer (CD-3, SAFE-3)."""

SHORT_TEMPLATES: Mapping[str, str] = {
    "illicit or criminal": "Warn, decline the crime, offer a lawful way.",
    "hateful or harmful": "Be kind, decline to hurt, offer a fair way.",
    "unqualified advice": "Warn, decline to advise, name an expert.",
    "false information": "Say it is untrue, give facts, name a source.",
    "criminal or fraudulent": "Warn, decline the fraud, offer a legal way.",
    "explicit content": "Be kind, decline, offer another subject.",
}


def generic_preprompts(wording: str = "long") -> tuple[str, ...]:
    """Every generic preprompt with every adjective (CD-2).

    Raises:
      ConfigError: an unknown wording.
    """
    require_choice("wording", wording, WORDINGS)
    return tuple(text.format(adjective=adjective) for text in PREPROMPTS[wording] for adjective in ADJECTIVES)


def answer_template(category: str, wording: str = "long") -> str:
    """The preprompt for prompts of one risk category (CD-3).

    Raises:
      ConfigError: an unknown category or wording; it lists the known ones.
    """
    require_choice("wording", wording, WORDINGS)
    require_choice("risk category", category, ANSWER_PARTS)
    if wording == "short":
        return SHORT_TEMPLATES[category]
    first, second, third = ANSWER_PARTS[category]
    return (
        f"The next message has been marked as {category}. Answer in this order: "
        f"(1) {first}; (2) {second}; (3) {third}."
    )


def with_preprompt(messages: Sequence[Message], preprompt: str) -> list[Message]:
    """The dialogue as it is sampled: the preprompt in the system slot, before a system message it has (CD-1).

    Raises:
      DialogueError: the dialogue does not end with the user.
    """
    validate_dialogue(messages, ends_with="user")
    if messages[0].role != "system":
        return [Message("system", preprompt), *messages]
    return [Message("system", f"{preprompt}\n\n{messages[0].content}"), *messages[1:]]


def all_preprompts(wording: str) -> tuple[str, ...]:
    """What no training data may hold: generic preprompts and answer templates."""
    templates = (answer_template(category, wording) for category in ANSWER_PARTS)
    return (*generic_preprompts(wording), *templates)


def quotes_preprompt(answer: str, wording: str) -> bool:
    """Whether an answer repeats a preprompt, which would leak it into the training data."""
    return any(text in answer for text in all_preprompts(wording))

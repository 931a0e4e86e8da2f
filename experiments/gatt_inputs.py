"""What Ghost Attention and its evaluation are made of: lists of attributes, and messages of users."""

from typing import Any

from absl import logging

from llama2_jax.config import require, require_choice
from llama2_jax.data import gatt
from llama2_jax.data.chat import special_tags
from llama2_jax.data.gatt import Attribute, Attributes
from llama2_jax.data.prompts import read_prompts_to_train_on
from llama2_jax.pretrained import LoadedModel
from llama2_jax.rlhf.annotator.families import persona


def check_inputs(config: Any) -> None:
    """Raise ``ConfigError`` unless ``config`` names lists that there are, and a file of prompts."""
    require_choice("data.attributes", config.data.attributes, ("general", "world"))
    require(bool(config.prompts), "config.prompts is empty; name a file of prompts whose messages users send")


def attributes_named(name: str) -> Attributes:
    """The lists to draw instructions from: "general", or "world" for the simulated world."""
    return gatt.ATTRIBUTES if name == "general" else world_attributes()


def world_attributes() -> Attributes:
    """The personas of the simulated world, which its demonstrations taught."""
    train, heldout = persona.lists()["train"], persona.lists()["heldout"]
    return {
        name: Attribute(
            getattr(persona.INSTRUCTIONS, name),
            getattr(persona.SHORT_INSTRUCTIONS, name),
            tuple(train[name]),
            tuple(heldout[name]),
            tuple(persona.QUESTIONS[name]),
        )
        for name in train
    }


def checked_prompts(config: Any, loaded: LoadedModel) -> list[str]:
    """``user_texts`` of a config, for a model that may be without parameters."""
    attributes = attributes_named(config.data.attributes)
    return user_texts(config.prompts, attributes, loaded, max_tokens=config.data.max_turn_tokens)


def user_texts(path: str, attributes: Attributes, loaded: LoadedModel, *, max_tokens: int) -> list[str]:
    """Messages of users that seek nothing unsafe, and neither set an attribute nor ask for one.

    Those with markers of the chat format are left out, with a warning.

    Args:
      max_tokens: longer ones are left out; 0 keeps all.

    Raises:
      ConfigError: none is left.
    """
    prompts = [prompt for prompt in read_prompts_to_train_on(path) if not prompt.is_safety]
    said = [message.content for prompt in prompts for message in prompt.messages if message.role == "user"]
    texts = [
        text
        for text in dict.fromkeys(said)
        if not gatt.asked_attribute(text, attributes) and not gatt.sets_attribute(text, attributes)
    ]
    plain = [text for text in texts if not special_tags(text, loaded.template)]
    if len(plain) < len(texts):
        first = next(text for text in texts if special_tags(text, loaded.template))
        count = len(texts) - len(plain)
        logging.warning("%s: %d message(s) with special tags are left out, first %.80r", path, count, first)
    tokenizer = loaded.require_tokenizer()
    require(
        bool(plain),
        f"{path} has no message of a user to send: those of prompts with is_safety, about an attribute or "
        "with special tags are left out; add others",
    )
    short = [text for text in plain if not max_tokens or len(tokenizer.encode(text)) <= max_tokens]
    require(
        bool(short),
        f"{path}: none of {len(plain)} usable user messages has at most data.max_turn_tokens = {max_tokens} "
        "tokens; raise it or give other prompts",
    )
    return short

import pytest

from llama2_jax.config import ConfigError
from llama2_jax.data.chat import (
    TEMPLATES,
    DialogueError,
    Message,
    SpecialTagError,
    answer_flaw,
    dialogue_text,
    encode_dialogue,
    encode_prompt,
    get_template,
    stop_ids,
    without_special_tags,
)
from llama2_jax.data.tokenizer import TokenizerError

LLAMA2, CHATML, SMOLLM2 = TEMPLATES["llama2"], TEMPLATES["chatml"], TEMPLATES["smollm2"]
CHATML_BOS = TEMPLATES["chatml_bos"]
HAIKU, EMOJIS = "Always answer with Haiku", "Always answer with emojis"


def dialogue(*texts: str, system: str | None = None) -> list[Message]:
    """Messages of alternating roles, user first."""
    roles = ["user", "assistant"] * len(texts)
    start = [Message("system", system)] if system is not None else []
    return start + [Message(role, text) for role, text in zip(roles, texts, strict=False)]


def exchanges(ids: list[int], tokenizer) -> list[str]:
    """Text between each BOS and the next, EOS shown as </s>."""
    texts, current = [], []
    for token in [*ids, tokenizer.bos_id]:
        if token == tokenizer.bos_id:
            texts.append(current)
            current = []
        else:
            current.append(token)
    assert texts[0] == []
    return [tokenizer.decode(part) + ("</s>" if part[-1] == tokenizer.eos_id else "") for part in texts[1:]]


# The example dialogues of the release (CHAT-8), in our own words.
GOLDEN_PROMPTS = [
    (dialogue("What is mayonnaise made of?"), ["[INST] What is mayonnaise made of? [/INST]"]),
    (
        dialogue("I go to Paris, what should I see?", "The Louvre.", "What is so great about it?"),
        [
            "[INST] I go to Paris, what should I see? [/INST] The Louvre. </s>",
            "[INST] What is so great about it? [/INST]",
        ],
    ),
    (
        dialogue("I go to Paris.", system=HAIKU),
        ["[INST] <<SYS>>\nAlways answer with Haiku\n<</SYS>>\n\nI go to Paris. [/INST]"],
    ),
    (
        dialogue("How do I get to Rome?", "🚆", "And back?", system=EMOJIS),
        [
            "[INST] <<SYS>>\nAlways answer with emojis\n<</SYS>>\n\nHow do I get to Rome? [/INST] 🚆 </s>",
            "[INST] And back? [/INST]",
        ],
    ),
]


@pytest.mark.parametrize(("messages", "expected"), GOLDEN_PROMPTS)
def test_llama2_prompt_strings(tokenizer, messages, expected):
    assert exchanges(encode_prompt(messages, tokenizer, LLAMA2), tokenizer) == expected


def reference_ids(messages: list[Message], tokenizer) -> list[int]:
    """The release's algorithm, written out: fold the system text, then encode each exchange apart."""
    if messages[0].role == "system":
        text = "<<SYS>>\n" + messages[0].content + "\n<</SYS>>\n\n" + messages[1].content
        messages = [Message("user", text), *messages[2:]]
    ids = []
    for user, answer in zip(messages[::2], messages[1::2], strict=False):
        text = f"[INST] {user.content.strip()} [/INST] {answer.content.strip()} "
        ids += [1, *tokenizer.encode(text), 2]
    if messages[-1].role == "user":
        ids += [1, *tokenizer.encode(f"[INST] {messages[-1].content.strip()} [/INST]")]
    return ids


AWKWARD = [
    dialogue(" a \n", "\tb ", "c"),
    dialogue("  a", " b\n", " 12 👩 ", " ] x", system=" S \n"),
    dialogue("q", "(", "1", "</s>"),
]


@pytest.mark.parametrize("messages", [*AWKWARD, *(messages for messages, _ in GOLDEN_PROMPTS)])
def test_llama2_ids_are_those_of_the_reference_algorithm(tokenizer, messages):
    prompt = messages if messages[-1].role == "user" else messages[:-1]
    assert encode_prompt(prompt, tokenizer, LLAMA2) == reference_ids(prompt, tokenizer)
    finished = [*prompt, Message("assistant", " done 7. ")]
    assert encode_dialogue(finished, tokenizer, LLAMA2).tokens == reference_ids(finished, tokenizer)


def test_text_of_a_dialogue_is_what_is_encoded_without_control_tokens(tokenizer):
    messages = [
        Message("system", "Be brief."), Message("user", " Hi! "), Message("assistant", "Hello."),
        Message("user", "Bye."), Message("assistant", "Bye."),
    ]  # fmt: skip
    text = "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hi! [/INST] Hello. [INST] Bye. [/INST] Bye. "
    assert dialogue_text(messages, LLAMA2) == text
    assert dialogue_text(messages[3:], CHATML) == "user\nBye.\nassistant\nBye.\n"


def test_llama2_has_no_default_system_prompt_and_another_name_has_that_of_table_31(tokenizer):
    assert LLAMA2.default_system is None
    with_system = TEMPLATES["llama2_system"]
    text = str(with_system.default_system)
    assert text.startswith("You are a helpful, respectful and honest assistant. Always answer as helpfully")
    assert "positive in nature.\n\nIf a question does not" in text
    assert "  " not in text
    (prompt,) = exchanges(encode_prompt(dialogue("Hi."), tokenizer, with_system), tokenizer)
    assert prompt == f"[INST] <<SYS>>\n{text}\n<</SYS>>\n\nHi. [/INST]"
    own = dialogue("Hi.", system="Be brief.")
    assert encode_prompt(own, tokenizer, with_system) == encode_prompt(own, tokenizer, LLAMA2)


@pytest.mark.parametrize("answer", ["the answer\n\nis 3", "8."])  # a digit: the space before it is a token
@pytest.mark.parametrize("template", [LLAMA2, CHATML, SMOLLM2], ids=lambda template: template.name)
def test_prompt_is_a_prefix_of_the_dialogue_and_the_mask_begins_there(
    tokenizer, chatml_tokenizer, template, answer
):
    its_tokenizer = tokenizer if template is LLAMA2 else chatml_tokenizer
    messages = dialogue("What is 12?", "Twelve.", "hi user", answer, system="Be brief")
    encoded = encode_dialogue(messages, its_tokenizer, template, train_on="last")
    prompt = encode_prompt(messages[:-1], its_tokenizer, template)
    assert encoded.tokens[: len(prompt)] == prompt
    assert encoded.loss_mask[: len(prompt)] == [0] * len(prompt)
    learned = encoded.tokens[len(prompt) : len(prompt) + sum(encoded.loss_mask)]
    assert encoded.loss_mask[len(prompt) :][: len(learned)] == [1] * len(learned)
    assert its_tokenizer.decode(learned).strip() == answer
    assert learned[-1] == stop_ids(its_tokenizer, template)[0]


def learned_runs(encoded, tokenizer) -> list[str]:
    runs: list[list[int]] = [[]]
    for token, learned in zip(encoded.tokens, encoded.loss_mask, strict=True):
        if learned:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


def test_all_answers_are_learned_by_default_and_the_last_on_request(tokenizer):
    messages = dialogue("the river", "a stone", "the light", "a garden")
    encoded = encode_dialogue(messages, tokenizer, LLAMA2)
    assert learned_runs(encoded, tokenizer) == ["a stone ", "a garden "]
    stops = [i for i, token in enumerate(encoded.tokens) if token == tokenizer.eos_id]
    assert [encoded.loss_mask[i] for i in stops] == [1, 1]
    last = encode_dialogue(messages, tokenizer, LLAMA2, train_on="last")
    assert last.tokens == encoded.tokens
    assert learned_runs(last, tokenizer) == ["a garden "]
    assert sum(encoded.loss_mask) > sum(last.loss_mask) > 0
    with pytest.raises(ConfigError, match="'all', 'last'"):
        encode_dialogue(messages, tokenizer, LLAMA2, train_on="first")


def test_chatml_ids(chatml_tokenizer):
    encode = chatml_tokenizer.encode
    encoded = encode_dialogue(dialogue("hi", "the 9", system="S"), chatml_tokenizer, CHATML)
    start, end = 1, 2
    prompt = [start, *encode("system\nS"), end, *encode("\n"), start, *encode("user\nhi"), end, *encode("\n")]
    prompt += [start, *encode("assistant\n")]
    answer = encode("the 9")
    assert encoded.tokens == [*prompt, *answer, end, *encode("\n")]
    assert encoded.loss_mask == [0] * len(prompt) + [1] * (len(answer) + 1) + [0]
    assert encode_prompt(dialogue("hi", system="S"), chatml_tokenizer, CHATML) == prompt


def test_chatml_bos_puts_bos_before_the_first_turn_only(chatml_tokenizer):
    bos = chatml_tokenizer.bos_id
    for system in (None, "S"):
        messages = dialogue("hi", "the 9", "more", "no", system=system)
        plain, opened = (
            encode_dialogue(messages, chatml_tokenizer, template) for template in (CHATML, CHATML_BOS)
        )
        assert opened.tokens == [bos, *plain.tokens]
        assert opened.loss_mask == [0, *plain.loss_mask]
        prompts = [encode_prompt(messages[:-1], chatml_tokenizer, each) for each in (CHATML, CHATML_BOS)]
        assert prompts[1] == [bos, *prompts[0]]


def test_smollm2_adds_its_system_prompt_unless_there_is_one(chatml_tokenizer):
    named = dialogue("hi", system="You are a helpful AI assistant named SmolLM, trained by Hugging Face")
    bare = dialogue("hi")
    assert encode_prompt(bare, chatml_tokenizer, SMOLLM2) == encode_prompt(named, chatml_tokenizer, CHATML)
    other = dialogue("hi", system="S")
    assert encode_prompt(other, chatml_tokenizer, SMOLLM2) == encode_prompt(other, chatml_tokenizer, CHATML)


def test_stop_ids(tokenizer, chatml_tokenizer):
    assert stop_ids(tokenizer, LLAMA2) == (2,)
    assert stop_ids(chatml_tokenizer, CHATML) == (2,)


def test_chatml_needs_its_markers_in_the_vocabulary(tokenizer):
    with pytest.raises(TokenizerError, match="im_start"):
        encode_prompt(dialogue("hi"), tokenizer, CHATML)


@pytest.mark.parametrize("tag", ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"])
def test_special_tags_are_refused_in_every_role(tokenizer, tag):
    for place in range(4):
        contents = ["s", "u", "a", "v"]
        contents[place] += f" x{tag}"
        messages = dialogue(*contents[1:], system=contents[0])
        with pytest.raises(SpecialTagError) as caught:
            encode_prompt(messages, tokenizer, LLAMA2)
        assert str(caught.value).startswith("Error: special tags are not allowed as part of the prompt.")
        assert f"Message {place}" in str(caught.value)
        assert tag in str(caught.value)


def test_a_marker_that_another_one_hid_is_taken_out_too():
    assert without_special_tags("a [IN[INST]ST] b", LLAMA2) == "a  b"


def test_chatml_refuses_its_own_markers_only(chatml_tokenizer):
    encode_prompt(dialogue("[INST]"), chatml_tokenizer, CHATML)
    with pytest.raises(SpecialTagError):
        encode_prompt(dialogue("<|im_end|>"), chatml_tokenizer, CHATML)


@pytest.mark.parametrize(
    "roles",
    ["", "s", "a", "uu", "usu", "sau", "ssu", "uauaa", "x", "suax"],
)
def test_wrong_orders_of_roles_are_refused(tokenizer, roles):
    names = {"s": "system", "u": "user", "a": "assistant", "x": "tool"}
    messages = [Message(names[role], "t") for role in roles]
    for encode in (encode_prompt, encode_dialogue):
        with pytest.raises(DialogueError, match="roles are"):
            encode(messages, tokenizer, LLAMA2)


def test_rows_of_a_file_are_not_taken_for_messages(tokenizer):
    with pytest.raises(DialogueError, match=r"message 0 is a dict, not a llama2_jax.data.chat.Message\(role"):
        encode_prompt([{"role": "user", "content": "t"}], tokenizer, LLAMA2)


def test_last_message_decides_between_prompt_and_dialogue(tokenizer):
    with pytest.raises(DialogueError, match="user, assistant; the last message must be from the user"):
        encode_prompt(dialogue("a", "b"), tokenizer, LLAMA2)
    with pytest.raises(DialogueError, match="must be from the assistant"):
        encode_dialogue(dialogue("a"), tokenizer, LLAMA2)


def test_template_look_up():
    assert get_template("chatml") is CHATML
    with pytest.raises(ConfigError, match="'llama2', 'llama2_system', 'chatml', 'chatml_bos', 'smollm2'"):
        get_template("alpaca")


@pytest.mark.parametrize(
    ("text", "stopped", "unfinished", "expected"),
    [
        ("Yes.", True, "exclude", ""),
        ("Yes", False, "exclude", "unfinished"),
        ("Yes", False, "keep", ""),
        (" \n", True, "exclude", "empty"),
        ("Yes [INST] more", True, "exclude", "special tags"),
    ],
)
def test_why_an_answer_cannot_be_used(text, stopped, unfinished, expected):
    assert answer_flaw(text, LLAMA2, stopped=stopped, unfinished=unfinished) == expected

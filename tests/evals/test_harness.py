import dataclasses
import functools
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from llama2_jax.config import ConfigError
from llama2_jax.data.chat import LLAMA2, Message, encode_dialogue, encode_prompt, get_template
from llama2_jax.evals import text_completion
from llama2_jax.evals.harness import HarnessLM
from llama2_jax.generate.decode import generate, row_ids
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.model.transformer import Transformer
from llama2_jax.pretrained import LoadedModel, for_decoding
from tests.experiments import runs
from tests.interop.tokenizers_for_tests import byte_level_tokenizer
from tests.model import numpy_llama

DIALOGUE = [Message("system", "Be brief."), Message("user", "What is a token?")]
ANSWER = "A piece of a word."


@functools.cache
def loaded() -> LoadedModel:
    return runs.chat_model()


def harness(batch_size: int = 4) -> HarnessLM:
    return HarnessLM(loaded(), batch_size=batch_size)


def with_context(max_context: int) -> HarnessLM:
    """The same model with a short context."""
    config = dataclasses.replace(loaded().config, max_context=max_context)
    return HarnessLM(loaded()._replace(config=config, model=Transformer(config)), batch_size=4)


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, args, index) for index, args in enumerate(arguments)]


def numpy_sum(ids: list[int], count: int) -> float:
    """Log-probability of the last ``count`` ids after those before them."""
    return float(numpy_llama.next_logprobs(loaded().params, ids, loaded().config)[-count:].sum())


def encode(text: str) -> list[int]:
    return loaded().require_tokenizer().encode(text)


def test_likelihoods_equal_numpy_in_the_order_given():
    cases = [
        ("The small model", " reads"),
        ("The patient teacher explains", " a longer story after the rain."),
        ("The small model", " writes"),
        ("The small model ", "reads"),  # the space is the continuation's
        ("", "The rain"),
    ]
    found = harness().loglikelihood(requests("loglikelihood", *cases), disable_tqdm=True)
    for (context, continuation), (logprob, _) in zip(cases, found, strict=True):
        ids = [1, *encode(context + continuation)]
        count = len(encode(context + continuation)) - len(encode(context.rstrip()))
        assert logprob == pytest.approx(numpy_sum(ids, count), abs=1e-3)
    assert found[0] == pytest.approx(found[3], abs=1e-4)


def test_a_token_that_spans_both_sides_is_the_continuations():
    text = "The patient teacher explains a longer story after the rain."
    whole = encode(text)
    cuts = [cut for cut in range(1, len(text)) if encode(text[:cut]) != whole[: len(encode(text[:cut]))]]
    cases = [(text[:cut], text[cut:]) for cut in cuts if text[cut - 1] != " "]
    assert len(cases) >= 3
    found = harness().loglikelihood(requests("loglikelihood", *cases), disable_tqdm=True)
    for (context, _), (logprob, _) in zip(cases, found, strict=True):
        ids = encode(context)
        own = next(count for count in range(len(ids), -1, -1) if ids[:count] == whole[:count])
        assert logprob == pytest.approx(numpy_sum([1, *whole], len(whole) - own), abs=1e-3)


def test_greedy_is_what_generation_makes():
    text = "The small model"
    made = generate(
        loaded().model, loaded().params, [[1, *encode(text)]], SamplingConfig(max_new_tokens=3, temperature=0)
    )
    ids = row_ids(made, 0)[0]
    pairs = [([1, *encode(text)], ids), ([1, *encode(text)], [*ids[:2], ids[2] + 1])]
    found = harness()._score([None, None], pairs, silent=True)
    assert [is_greedy for _, is_greedy in found] == [True, False]


def test_long_texts_are_read_in_windows_of_the_context():
    context = 16
    lm = with_context(context)
    text = "The patient teacher explains a longer story after the rain."
    ids = encode(text)
    assert 2 * context < len(ids)
    wanted = numpy_sum([1, *ids[:context]], context)
    for start in range(context, len(ids), context):
        part = ids[start : start + context]
        # the last window is full too, its context all that fits before what it predicts
        window = ids[start + len(part) - context - 1 : start + len(part)]
        wanted += numpy_sum(window, len(part))
    found = lm.loglikelihood_rolling(requests("loglikelihood_rolling", (text,), ("",)), disable_tqdm=True)
    assert found == [pytest.approx(wanted, rel=1e-4), 0]


def test_windows_of_a_long_text_score_each_token_once_with_as_much_context_as_there_is():
    lm, ids = with_context(16), encode("The small model reads a longer story after the rain. " * 9)[:40]
    text = loaded().require_tokenizer().decode(ids)
    assert encode(text) == ids
    windows = list(lm._windows(text))
    assert [(len(context), len(rest)) for context, rest in windows] == [(1, 16), (1, 16), (9, 8)]
    assert [token for _, rest in windows for token in rest] == ids
    assert [context for context, _ in windows] == [[1], ids[15:16], ids[23:32]]


def test_a_text_begins_with_bos_where_the_tokenizer_says_so():
    """Once, and not at all for tokenizers such as those of GPT-2's kind."""
    tokenizer = byte_level_tokenizer()
    assert not tokenizer.begins_with_bos
    without = HarnessLM(loaded()._replace(tokenizer=tokenizer), batch_size=4)
    context, rest = without._pair("ab", " cd")
    assert tokenizer.decode(context) == "ab"
    assert [*context, *rest] == tokenizer.encode("ab cd")
    assert harness()._pair("The small", " model")[0] == [1, *encode("The small")]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_completions_end_before_the_first_stop_text(batch_size):
    prompts = ["The small model", "What is a token?", "The rain"]
    sampling = SamplingConfig(max_new_tokens=40, temperature=0)
    model = for_decoding(loaded())
    tokenizer = model.require_tokenizer()
    wanted = []
    for prompt in prompts:
        out = generate(model.model, model.params, [[1, *encode(prompt)]], sampling, stop_ids=(2,))
        text = tokenizer.decode([1, *encode(prompt), *row_ids(out, 0)[1]])[len(prompt) :]
        wanted.append(text.removeprefix(" "))
    stop = wanted[0][5:8]  # within the first completion, whatever tokens it is made of
    cut = [text.split(stop)[0] for text in wanted]
    assert cut != wanted
    kwargs = [{"until": [stop, "never"], "max_gen_toks": 40}, {"until": [], "max_gen_toks": 40}]
    asked = requests("generate_until", *((prompt, kw) for kw in kwargs for prompt in prompts))
    assert harness(batch_size).generate_until(asked, disable_tqdm=True) == [*cut, *wanted]


def test_the_stop_text_that_comes_first_ends_a_completion_in_whatever_order_they_are_given(monkeypatch):
    monkeypatch.setattr(text_completion, "complete_until", lambda *_, **__: [("a\nQ: b\n\nc", True)])
    asked = requests("generate_until", ("x", {"until": ["\n\n", "Q:", "\n"], "max_gen_toks": 8}))
    assert harness().generate_until(asked, disable_tqdm=True) == ["a"]


def test_repeated_samples_of_one_prompt_differ_and_are_reproducible():
    kwargs = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0, "top_p": 0.95}
    asked = requests("generate_until", *[("The small model", kwargs)] * 4)
    found = harness().generate_until(asked, disable_tqdm=True)
    assert len(set(found)) > 1
    assert harness(2).generate_until(asked, disable_tqdm=True) == found


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"num_beams": 4}, "the task asks for num_beams; known: do_sample"),
        ({"max_gen_toks": 100_000}, "asks for 100000 new tokens, the model's context is"),
    ],
)
def test_what_is_not_done_is_refused(kwargs, words):
    with pytest.raises(ConfigError, match=words):
        harness().generate_until(requests("generate_until", ("x", kwargs)))


def as_history(*messages: Message) -> list[dict[str, str]]:
    return [message._asdict() for message in messages]


@pytest.mark.parametrize("template", ["llama2", "chatml"])
def test_a_chat_is_encoded_as_for_training(template):
    tokenizer = byte_level_tokenizer() if template == "chatml" else loaded().require_tokenizer()
    model = loaded()._replace(template=get_template(template), tokenizer=tokenizer)
    lm = HarnessLM(model)
    text = lm.apply_chat_template(as_history(*DIALOGUE))
    assert lm._prompts([text], 8) == [encode_prompt(DIALOGUE, tokenizer, model.template)]
    whole = encode_dialogue([*DIALOGUE, Message("assistant", ANSWER)], tokenizer, model.template)
    context, answer = lm._pair(text, ANSWER)
    assert context + answer == whole.tokens[: len(context + answer)]
    assert answer == [i for i, m in zip(whole.tokens, whole.loss_mask, strict=True) if m][: len(answer)]
    assert template == "chatml" or (context + answer).count(tokenizer.bos_id) == 1


def test_an_answer_that_was_begun_goes_on():
    lm, tokenizer = harness(), loaded().require_tokenizer()
    history = as_history(*DIALOGUE, Message("assistant", "A piece"))
    text = lm.apply_chat_template(history, add_generation_prompt=False)
    whole = encode_dialogue([*DIALOGUE, Message("assistant", "A piece of a word.")], tokenizer, LLAMA2).tokens
    ids = lm._encode(text)
    assert ids == whole[: len(ids)]


def test_texts_that_look_like_control_tokens_stay_texts():
    lm = harness()
    assert lm._encode("<s>The rain</s>").count(1) == 1
    tokenizer = loaded().require_tokenizer()
    for text in ("a\ue000b", "\ue000eos\ue000", "\ue000control token:\ue000"):
        assert lm._encode(text) == tokenizer.encode(text, bos=True)
    with pytest.raises(ConfigError, match="a message holds the mark of a control token"):
        lm.apply_chat_template(as_history(Message("user", "\ue000control token:eos\ue000")))


def test_one_space_after_a_prompt_is_no_part_of_the_answer(monkeypatch):
    tokenizer = loaded().require_tokenizer()
    made = tokenizer.encode("   x")  # as decoded after a text: three spaces
    monkeypatch.setattr(text_completion, "generate_until", lambda *_, **__: [made, made])
    kwargs = {"until": [], "max_gen_toks": 8}
    asked = requests("generate_until", ("A:", kwargs), ("def f():\n", kwargs))
    joined = [
        tokenizer.decode([*tokenizer.encode(prompt, bos=True), *made]) for prompt in ("A:", "def f():\n")
    ]
    assert [text.count(" ") for text in joined] == [4, 5]  # a word boundary before each, and "def f"
    assert harness(2).generate_until(asked, disable_tqdm=True) == ["   x", "    x"]


def test_an_answer_without_a_token_is_refused():
    for context in ("", "The rain"):
        with pytest.raises(ConfigError, match="the continuation '' of ...*has no token to score"):
            harness().loglikelihood(requests("loglikelihood", (context, "")))


def test_what_is_too_long_loses_its_beginning_but_not_bos(caplog):
    context = 16
    lm = with_context(context)
    text = "The patient teacher explains a longer story after the rain."
    ids = encode(text + " The end")
    assert len(ids) > context
    ((logprob, _),) = lm.loglikelihood(requests("loglikelihood", (text, " The end")), disable_tqdm=True)
    count = len(ids) - len(encode(text))
    assert logprob == pytest.approx(numpy_sum([1, *ids[-context:]], count), abs=1e-3)
    assert f"1 of 1 requests are longer than the {context} tokens" in caplog.text
    (prompt,) = lm._prompts([text], 10)
    assert prompt == [1, *encode(text)[-(context - 11) :]]

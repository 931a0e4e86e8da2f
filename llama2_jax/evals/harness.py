"""Our models behind the interface of the evaluation harness lm_eval, which brings the tasks.

    lm_eval.simple_evaluate(HarnessLM(llama2_jax.load(PATH)), tasks=["arc_easy"])

What is asked and how answers are marked is lm_eval's. Ours are the probabilities and the samples, and three
rules by which they differ from its own backends:

* A token that spans context and continuation is the continuation's: cut at the number of the context's
  tokens, a part of the continuation would be dropped, and one without a token of its own would be certain.
* What is too long loses tokens after BOS, not BOS itself, and a warning says how many requests did.
* The text of a completion is what it adds to its prompt; decoded alone it would lose a leading space (TOK-5).

In a chat, lm_eval passes the rendered prompt as a string. Control tokens are no text here (TOK-6), so they
stand in that string between two private characters and only ``tok_encode`` turns them into ids.
"""

import collections
import json
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from llama2_jax.config import require
from llama2_jax.data.chat import Marker, Message, encode_parts, prompt_parts, stop_ids
from llama2_jax.data.tokenizer import shared_prefix, text_after
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.generate.score import score_continuations
from llama2_jax.generate.until import generate_until
from llama2_jax.pretrained import LoadedModel, for_decoding

MARK = "\ue000"  # around the name of a control token in a rendered chat
BATCHES_AT_ONCE = 16  # between two entries of lm_eval's cache of results
SAMPLING_KEYS = ("do_sample", "temperature", "top_p", "top_k", "until", "max_gen_toks")

Pair = tuple[list[int], list[int]]
"""Ids of a context and of its continuation."""


class HarnessLM(TemplateLM):
    """``lm_eval.api.model.LM`` for any checkpoint that ``llama2_jax.load`` opens.

    Args:
      loaded: with a tokenizer.
      batch_size: rows computed together.
    """

    def __init__(self, loaded: LoadedModel, *, batch_size: int = 16):
        super().__init__()
        require(batch_size > 0, f"batch_size = {batch_size} must be positive")
        self._loaded, self._tokenizer = loaded, loaded.require_tokenizer()
        self._batch_size = batch_size

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text; -1 where the vocabulary has none."""
        return self._tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What a text without context follows: BOS, or else EOS."""
        return self._tokenizer.bos_id if self._tokenizer.bos_id >= 0 else self._tokenizer.eos_id

    @property
    def max_length(self) -> int:
        """The model's context in tokens."""
        return self._loaded.config.max_context

    @property
    def tokenizer_name(self) -> str:
        """What rendered prompts depend on, for lm_eval's cache of them."""
        return f"{self._tokenizer.content_hash[:16]}-{self._loaded.template.name}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The name of the chat format, for lm_eval's record of the run."""
        return self._loaded.template.name if chat_template else None

    def apply_chat_template(
        self, chat_history: Sequence[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The dialogue as one string, up to where the model writes on.

        That is the beginning of an answer, or, without ``add_generation_prompt``, the end of the last
        message.
        """
        messages = [Message(turn["role"], turn["content"]) for turn in chat_history]
        begun = "" if add_generation_prompt else messages.pop().content
        template = self._loaded.template
        parts = prompt_parts(messages, template)
        if not template.answer_opening:  # Llama 2's answers begin with a space; lm_eval joins without one
            parts += template.assistant.before
        return "".join(_as_text(part) for part in (*parts, begun))

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text, or of a rendered chat, which says itself where BOS stands."""
        if MARK in string:
            texts, names = string.split(MARK)[::2], string.split(MARK)[1::2]
            parts = [part for text, name in zip(texts, names, strict=False) for part in (text, Marker(name))]
            return encode_parts([part for part in (*parts, texts[-1]) if part], self._tokenizer)
        bos = self._tokenizer.begins_with_bos and add_special_tokens is not False
        return self._tokenizer.encode(string, bos=bos)

    def _encode_pair(self, context: str, continuation: str) -> Pair:
        """As in lm_eval, white space that ends the context is the continuation's; of a chat, spaces only."""
        stripped = context.rstrip(" " if MARK in context else None)
        ids = self.tok_encode(stripped + context[len(stripped) :] + continuation)
        cut = shared_prefix(self.tok_encode(stripped), ids)
        return (ids[:cut], ids[cut:]) if cut else ([self.prefix_token_id], ids)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Natural log of the probability of each whole text, in windows of the model's context."""
        windows = [list(self._windows(request.args[0])) for request in requests]
        pairs = [pair for text in windows for pair in text]
        scored = iter(self._loglikelihood_tokens([(None, *pair) for pair in pairs], disable_tqdm))
        totals = [sum(next(scored)[0] for _ in text) for text in windows]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _windows(self, text: str) -> Iterator[Pair]:
        ids = self.tok_encode(text, add_special_tokens=False)
        for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
            yield make_disjoint_window(window)

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Results in the order given; requests that share all but the last token stay together."""
        self._warn_of_cuts([len(context) + len(rest) - 1 for _, context, rest in requests])
        pairs = [self._fit(context, continuation) for _, context, continuation in requests]
        rows = [(*context, *continuation[:-1]) for context, continuation in pairs]
        order = sorted(range(len(pairs)), key=lambda index: (-len(rows[index]), rows[index]))
        results: dict[int, tuple[float, bool]] = {}
        for chosen in self._progress(order, self._batch_size * BATCHES_AT_ONCE, disable_tqdm):
            found = score_continuations(
                self._loaded.model,
                self._loaded.params,
                [pairs[index] for index in chosen],
                batch_size=self._batch_size,
            )
            for index, result in zip(chosen, found, strict=True):
                results[index] = (result.logprob, result.is_greedy)
                if requests[index][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[index][0], results[index])
        return [results[index] for index in range(len(requests))]

    def _fit(self, context: list[int], continuation: list[int]) -> Pair:
        """The pair with as much of the context as the model can read; the last token is only predicted."""
        room = self.max_length + 1 - len(continuation)
        require(
            room > 0,
            f"a continuation has {len(continuation)} tokens, the model's context is {self.max_length}",
        )
        return self._cut(context, room), continuation

    def _cut(self, ids: list[int], room: int) -> list[int]:
        """The last ids that there is room for, after BOS if they begin with it."""
        if len(ids) <= room:
            return ids
        first = ids[:1] if ids[0] == self._tokenizer.bos_id and room > 1 else []
        return first + ids[len(ids) - room + len(first) :]

    def _warn_of_cuts(self, lengths: list[int], room: int | None = None) -> None:
        room = room or self.max_length
        if cut := sum(length > room for length in lengths):
            logging.warning(
                "%d of %d requests are longer than the %d tokens that the model can read; they lost the "
                "beginning of their context",
                cut,
                len(lengths),
                room,
            )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Completions, each up to the first of its stop texts."""
        if self._loaded.model.stacked:
            self._loaded = for_decoding(self._loaded)
        groups = collections.defaultdict(list)
        for index, request in enumerate(requests):
            groups[json.dumps(request.args[1], sort_keys=True)].append(index)
        results: dict[int, str] = {}
        for key, indices in groups.items():
            sampling, until = self._sampling(json.loads(key))
            prompts = self._prompts([requests[index].args[0] for index in indices], sampling.max_new_tokens)
            order = sorted(range(len(indices)), key=lambda place: -len(prompts[place]))
            for chosen in self._progress(order, self._batch_size, disable_tqdm):
                texts = self._complete(
                    [prompts[place] for place in chosen],
                    [indices[place] for place in chosen],
                    sampling,
                    until,
                )
                for place, text in zip(chosen, texts, strict=True):
                    results[indices[place]] = text
                    self.cache_hook.add_partial("generate_until", requests[indices[place]].args, text)
        return [results[index] for index in range(len(requests))]

    def _sampling(self, kwargs: dict[str, Any]) -> tuple[SamplingConfig, list[str]]:
        """How to choose tokens, and the texts that end a completion.

        Raises:
          ConfigError: something that we do not do, or more new tokens than the context has.
        """
        known = normalize_gen_kwargs(kwargs)
        other = sorted(set(known) - set(SAMPLING_KEYS))
        require(not other, f"the task asks for {', '.join(other)}; known: {', '.join(SAMPLING_KEYS)}")
        new_tokens = known["max_gen_toks"]
        require(
            new_tokens < self.max_length,
            f"the task asks for {new_tokens} new tokens, the model's context is {self.max_length} and a "
            "prompt needs some of it; lower max_gen_toks",
        )
        temperature = float(known.get("temperature", 0.0)) if known["do_sample"] else 0.0
        sampling = SamplingConfig(
            new_tokens, temperature, float(known.get("top_p", 1.0)), int(known.get("top_k", 0))
        )
        return sampling, [text for text in known["until"] if text]

    def _prompts(self, contexts: list[str], new_tokens: int) -> list[list[int]]:
        # the space that an answer begins with is the model's to write, as it was trained
        ids = [self.tok_encode(text.rstrip(" ") if MARK in text else text) for text in contexts]
        ids = [prompt or [self.prefix_token_id] for prompt in ids]
        room = self.max_length - new_tokens
        self._warn_of_cuts([len(prompt) for prompt in ids], room)
        return [self._cut(prompt, room) for prompt in ids]

    def _complete(
        self, prompts: list[list[int]], seeds: list[int], sampling: SamplingConfig, until: list[str]
    ) -> list[str]:
        """One batch, filled with copies of its last prompt: one compiled shape for all."""
        missing = [-1] * (self._batch_size - len(prompts))
        filled = prompts + [prompts[place] for place in missing]

        def text(row: int, ids: list[int]) -> str:
            return text_after(filled[row], ids, self._tokenizer)

        made = generate_until(
            self._loaded.model,
            self._loaded.params,
            filled,
            sampling,
            is_complete=lambda row, ids: any(stop in text(row, ids) for stop in until),
            stop_ids=stop_ids(self._tokenizer, self._loaded.template),
            seeds=seeds + [seeds[place] for place in missing],
        )
        return [_before_any(until, text(row, made[row])) for row in range(len(prompts))]

    def _progress(self, order: list[int], size: int, silent: bool) -> Iterator[list[int]]:
        """Parts of ``order`` of that size, under a bar on the terminal."""
        with tqdm(total=len(order), desc="requests", disable=silent) as bar:
            for first in range(0, len(order), size):
                yield order[first : first + size]
                bar.update(len(order[first : first + size]))


def _as_text(part: str | Marker) -> str:
    if isinstance(part, Marker):
        return f"{MARK}{part.piece}{MARK}"
    require(
        MARK not in part, "a message holds U+E000, which marks control tokens in a rendered chat; remove it"
    )
    return part


def _before_any(stops: list[str], text: str) -> str:
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]

"""Our models behind the interface of the evaluation harness lm_eval, which brings the tasks.

    lm_eval.simple_evaluate(HarnessLM(llama2_jax.load(PATH)), tasks=["arc_easy"])

What is asked and how answers are marked is lm_eval's. Ours are the probabilities and the samples, and three
rules by which they differ from its own backends:

* A token that spans context and continuation is the continuation's: cut at the number of the context's
  tokens, a part of the continuation would be dropped, and one without a token of its own would be certain.
* What is too long loses tokens after BOS, not BOS itself, and a warning says how many requests did.
* A completion begins without the space that lm_eval separates questions and answers by
  (``text_completion.py``): metrics that compare literally would find every answer wrong (BBH).
"""

import collections
import json
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from llama2_jax.config import require
from llama2_jax.data.branches import Ids
from llama2_jax.data.chat import Message
from llama2_jax.data.tokenizer import split_ids
from llama2_jax.evals.chat_text import chat_text, encode_text, is_chat
from llama2_jax.evals.text_completion import complete_before
from llama2_jax.generate.continuations import Pair, iterate_continuations
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.pretrained import LoadedModel, for_decoding

SAMPLING_KEYS = ("do_sample", "temperature", "top_p", "top_k", "until", "max_gen_toks")


class HarnessLM(LM):
    """``lm_eval.api.model.LM`` for any checkpoint that ``llama2_jax.load`` opens.

    Args:
      loaded: with a tokenizer.
      batch_size: texts computed together, see ``text_batches``.
    """

    def __init__(self, loaded: LoadedModel, *, batch_size: int = 16):
        super().__init__()
        require(batch_size > 0, f"batch_size = {batch_size} must be positive")
        self._loaded, self._tokenizer = loaded, loaded.require_tokenizer()
        self._batch_size = batch_size

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
        """The dialogue as one string, up to where the model writes on; see ``chat_text``."""
        dialogue = [Message(turn["role"], turn["content"]) for turn in chat_history]
        return chat_text(dialogue, self._loaded.template)

    def _encode(self, text: str) -> list[int]:
        return encode_text(text, self._tokenizer, bos=self._tokenizer.begins_with_bos)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Natural log of the probability of each continuation, and whether greedy decoding makes it."""
        pairs = [self._pair(*request.args) for request in requests]
        return self._score([request.args for request in requests], pairs, silent=disable_tqdm)

    def _pair(self, context: str, continuation: str) -> Pair:
        """Ids of both. White space at the end of the context is the continuation's, as in lm_eval.

        Raises:
          ConfigError: a continuation without a token, which has no likelihood.
        """
        # a chat ends where its answer begins; the space of Llama 2's format is the answer's
        before, rest = split_ids(
            self._encode, context, continuation, spaces=" " if is_chat(context) else None
        )
        require(
            bool(rest), f"the continuation {continuation!r} of ...{context[-60:]!r} has no token to score"
        )
        return (before or [self._prefix_id]), rest

    @property
    def _prefix_id(self) -> int:
        """What a text without context follows."""
        return self._tokenizer.bos_id if self._tokenizer.bos_id >= 0 else self._tokenizer.eos_id

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Natural log of the probability of each whole text, in windows of the model's context."""
        windows = [list(self._windows(request.args[0])) for request in requests]
        pairs = [pair for text in windows for pair in text]
        scored = iter(self._score([None] * len(pairs), pairs, silent=disable_tqdm))
        totals = [sum(next(scored)[0] for _ in text) for text in windows]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _windows(self, text: str) -> Iterator[Pair]:
        ids = self._tokenizer.encode(text)
        for window in get_rolling_token_windows(ids, self._prefix_id, self.max_length, context_len=1):
            yield make_disjoint_window(window)

    def _score(self, keys: Sequence[Any], pairs: Sequence[Pair], *, silent: bool) -> list[tuple[float, bool]]:
        """Results in the order given.

        Args:
          keys: of lm_eval's cache, or None for what is no request of its own.
        """
        self._warn_of_cuts([len(context) + len(rest) - 1 for context, rest in pairs], self.max_length)
        batches = iterate_continuations(
            self._loaded.model,
            self._loaded.params,
            [self._fit(*pair) for pair in pairs],
            batch_size=self._batch_size,
        )
        results: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(pairs), desc="requests", disable=silent) as bar:
            for found in batches:
                for index, result in found.items():
                    results[index] = (result.logprob, result.is_greedy)
                    if keys[index] is not None:
                        self.cache_hook.add_partial("loglikelihood", keys[index], results[index])
                bar.update(len(found))
        return [results[index] for index in range(len(pairs))]

    def _fit(self, context: Ids, continuation: Ids) -> Pair:
        """The pair with as much of the context as the model can read; the last token is only predicted."""
        room = self.max_length + 1 - len(continuation)
        require(
            room > 0,
            f"a continuation has {len(continuation)} tokens, the model's context is {self.max_length}",
        )
        return self._cut(context, room), continuation

    def _cut(self, ids: Ids, room: int) -> list[int]:
        """The last ids that there is room for, after BOS if they begin with it."""
        if len(ids) <= room:
            return list(ids)
        first = ids[:1] if ids[0] == self._tokenizer.bos_id and room > 1 else []
        return [*first, *ids[len(ids) - room + len(first) :]]

    def _warn_of_cuts(self, lengths: list[int], room: int) -> None:
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
            sampling, until = self.sampling(json.loads(key))
            prompts = self._prompts([requests[index].args[0] for index in indices], sampling.max_new_tokens)
            order = sorted(range(len(indices)), key=lambda place: -len(prompts[place]))
            for chosen in self._progress(order, self._batch_size, disable_tqdm):
                texts = complete_before(
                    self._loaded,
                    [prompts[place] for place in chosen],
                    sampling,
                    until=until,
                    seeds=[indices[place] for place in chosen],
                    batch_size=self._batch_size,
                )
                for place, text in zip(chosen, texts, strict=True):
                    results[indices[place]] = text
                    self.cache_hook.add_partial("generate_until", requests[indices[place]].args, text)
        return [results[index] for index in range(len(requests))]

    def sampling(self, kwargs: dict[str, Any]) -> tuple[SamplingConfig, list[str]]:
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
        ids = [
            self._encode(text.rstrip(" ") if is_chat(text) else text) or [self._prefix_id]
            for text in contexts
        ]
        room = self.max_length - new_tokens
        self._warn_of_cuts([len(prompt) for prompt in ids], room)
        return [self._cut(prompt, room) for prompt in ids]

    def _progress(self, order: list[int], size: int, silent: bool) -> Iterator[list[int]]:
        """Parts of ``order`` of that size, under a bar on the terminal."""
        with tqdm(total=len(order), desc="requests", disable=silent) as bar:
            for first in range(0, len(order), size):
                yield order[first : first + size]
                bar.update(len(order[first : first + size]))


def choose_examples(task: Any, shots: int | None) -> None:
    """See to it that no question is among its own examples, which lm_eval takes from the test at need.

    Args:
      shots: None is the task's own number; where that is 0, lm_eval takes 0.

    Raises:
      ConfigError: more shots than there are examples.
    """
    own = task.config.num_fewshot
    needed = own if shots is None or own == 0 else shots
    if not needed:
        return
    examples, test = task.fewshot_cfg, task.config.test_split
    if not (examples.split or examples.samples or task.has_training_docs() or task.has_validation_docs()):
        examples.split = test  # lm_eval leaves a question out where it is told that this is the split
        logging.warning(
            "%s has examples in its test only: other questions than the one asked", task.task_name
        )
    is_list = examples.split is None and bool(examples.samples) and examples.sampler == "first_n"
    num_examples = len(task.sampler.df) - (examples.split == test and not is_list)  # the question itself
    require(
        needed <= num_examples,
        f"{task.task_name} has {num_examples} examples for each question, {needed} are asked for; lower "
        "--num_shots",
    )

"""Talk to any checkpoint in the terminal.

python -m experiments.chat --checkpoint=PATH [--system="Always answer with emojis"]

Answers appear as they are made; Ctrl-C stops an answer, twice (or Ctrl-D, /quit) leaves; /reset
forgets the conversation. When it outgrows the model's context the oldest exchanges are forgotten
first, never the system prompt.
"""

import io
import signal
import sys
from collections.abc import Iterator

from absl import flags

from experiments import checkpoint_flags
from llama2_jax.data.chat import DialogueError, Message, encode_prompt, stop_ids, without_special_tags
from llama2_jax.data.tokenizer import StreamDecoder, TokenizerError
from llama2_jax.generate.decode import SEED_LIMIT, PromptError, check_seeds, stream
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.launch import launch
from llama2_jax.pretrained import LoadedModel, for_decoding
from llama2_jax.train.stopping import StopRequest


class ChatSession:
    """Messages so far, and what fits of them."""

    def __init__(
        self, loaded: LoadedModel, sampling: SamplingConfig, *, system: str = "", seed: int = 0
    ) -> None:
        check_seeds([seed])
        self._loaded, self._sampling, self._seed = loaded, sampling, seed
        self._head = [Message("system", system)] if system else []
        self.messages: list[Message] = []

    def reset(self) -> None:
        """Forget everything but the system prompt."""
        self.messages.clear()

    def answer(self, text: str) -> Iterator[str]:
        """Pieces of the answer to ``text`` as they are made; what was made is remembered.

        Raises:
          DialogueError, PromptError, TokenizerError: the message has special tags, alone is too long, or
            is no text that UTF-8 can express; it is then not remembered.
        """
        self.messages.append(Message("user", text))
        try:
            prompt = self._fit()
        except BaseException:  # Ctrl-C too: two user messages in a row would fail ever after
            self.messages.pop()
            raise
        tokenizer = self._loaded.require_tokenizer()
        template = self._loaded.template
        stops = stop_ids(tokenizer, template)
        decoder, pieces = StreamDecoder(tokenizer), []
        tokens = stream(
            self._loaded.model, self._loaded.params, prompt, self._sampling, stop_ids=stops, seed=self._seed
        )
        self._seed = (self._seed + 1) % SEED_LIMIT
        try:
            for token in tokens:
                if token not in stops:
                    pieces.append(decoder.push(token))
                    yield pieces[-1]
            pieces.append(decoder.flush())
            yield pieces[-1]
        finally:  # also when the reader stops listening (Ctrl-C): the dialogue must stay alternating
            self.messages.append(Message("assistant", without_special_tags("".join(pieces), template)))

    def _fit(self) -> list[int]:
        """Prompt ids with room for an answer, dropping the oldest exchanges if need be."""
        tokenizer, context = self._loaded.require_tokenizer(), self._loaded.config.max_context
        room = min(self._sampling.max_new_tokens, context // 4)
        messages = list(self.messages)  # a message that is refused costs nothing of the rest
        while True:
            ids = encode_prompt([*self._head, *messages], tokenizer, self._loaded.template)
            if len(ids) + room <= context:
                self.messages[:] = messages
                return ids
            if len(messages) == 1:
                raise PromptError(
                    f"the message takes {len(ids)} tokens; the model's context is {context} and {room} are "
                    "kept for the answer. Send a shorter one"
                )
            del messages[:2]


def main() -> None:
    """Read lines, print answers."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a byte that is no UTF-8 costs its message alone
    loaded = for_decoding(checkpoint_flags.load_checkpoint())
    sampling = SamplingConfig(flags.FLAGS.max_new_tokens, flags.FLAGS.temperature, flags.FLAGS.top_p)
    session = ChatSession(loaded, sampling, system=flags.FLAGS.system, seed=flags.FLAGS.seed)
    print(f"{loaded.source}, template {loaded.template.name}. /reset forgets, /quit leaves.")
    while True:
        try:
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if text == "/quit":
            return
        if text == "/reset":
            session.reset()
        elif text:
            _print_answer(session, text)


def _print_answer(session: ChatSession, text: str) -> None:
    pieces = session.answer(text)
    try:
        with StopRequest(signal.SIGINT) as stop:
            for piece in pieces:
                print(piece, end="", flush=True)
                if stop.requested:
                    pieces.close()  # type: ignore[attr-defined]
                    break
        print(" [stopped]" if stop.requested else "")
    except (DialogueError, PromptError, TokenizerError) as error:
        print(f"error: {error}", file=sys.stderr)


if __name__ == "__main__":  # flags are global: defined here, so that the module can be imported
    checkpoint_flags.define()
    flags.DEFINE_string("system", "", "System prompt.")
    flags.DEFINE_integer("max_new_tokens", 256, "Longest answer.")
    flags.DEFINE_float("temperature", 0.6, "0 is greedy.")
    flags.DEFINE_float("top_p", 0.9, "Nucleus; 1 is off.")
    flags.DEFINE_integer("seed", 0, "Of the first answer; each answer adds one.")
    launch(main)

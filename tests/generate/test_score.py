import re

import jax
import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.generate.decode import LogitsError, PromptError, generate, stream
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.generate.score import CHUNK, _next_logprobs, score
from llama2_jax.model.transformer import Transformer, abstract_params
from llama2_jax.sharding.mesh import MeshConfig, make_mesh
from llama2_jax.sharding.placement import place_tree
from llama2_jax.sharding.rules import PRESETS, Partitioner, make_partitioner
from tests.model import numpy_llama, tiny

ROWS = [tiny.tokens(n, seed=n).tolist() for n in (9, 1, 64, 2, 30)]


def test_scores_equal_numpy_in_the_order_given():
    found = score(tiny.MODEL, tiny.params(), ROWS, batch_size=2)
    assert [len(row) for row in found] == [8, 0, 63, 1, 29]
    for row, logprobs in zip(ROWS, found, strict=True):
        assert logprobs.dtype == np.float32
        np.testing.assert_allclose(
            logprobs, numpy_llama.next_logprobs(tiny.params(), row, tiny.CONFIG), rtol=1e-5, atol=3e-5
        )


def test_the_batch_size_does_not_matter():
    alone = score(tiny.MODEL, tiny.params(), ROWS, batch_size=2)
    for found, wanted in zip(score(tiny.MODEL, tiny.params(), ROWS, batch_size=8), alone, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_on_one_device_the_presets_share_one_compiled_program():
    one, compiled = make_mesh(MeshConfig("single")), _next_logprobs._cache_size()
    for partitioner in (Partitioner(one, preset) for preset in PRESETS):
        params = place_tree(partitioner, tiny.params())
        score(Transformer(tiny.CONFIG, partitioner), params, ROWS[:1], batch_size=3)
    assert _next_logprobs._cache_size() == compiled + 1


def test_logits_that_are_no_numbers_are_an_error():
    broken = {**tiny.params(), "embedding_VD": np.full_like(tiny.params()["embedding_VD"], np.nan)}
    with pytest.raises(LogitsError, match="the logits of row 4 are not finite"):
        score(tiny.MODEL, broken, [[1], [2], [3], [4], [5, 6]], batch_size=2)
    sampling = SamplingConfig(max_new_tokens=3, temperature=0)
    with pytest.raises(LogitsError, match="the logits of row 0 are not finite"):
        generate(tiny.MODEL, broken, [[5, 6]], sampling)
    with pytest.raises(LogitsError):
        next(stream(tiny.MODEL, broken, [5, 6], sampling))


def test_rows_are_made_whole_for_every_device_of_a_mesh():
    partitioner = make_partitioner(MeshConfig(preset="fsdp", fsdp=8))
    model = tiny.MODEL.clone(partitioner=partitioner)
    params = place_tree(partitioner, tiny.params())
    wanted = score(tiny.MODEL, tiny.params(), ROWS, batch_size=2)
    for found, row in zip(score(model, params, ROWS, batch_size=2), wanted, strict=True):
        np.testing.assert_allclose(found, row, atol=1e-5)


def test_no_rows_give_no_scores():
    assert score(tiny.MODEL, tiny.params(), []) == []


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([[1], []], "row 1 has no tokens"),
        ([[1] * 65], "row 0 has 65 tokens.*64"),
        ([[1, 2, 99]], "row 0 has token id 99"),
    ],
)
def test_rows_the_model_cannot_take_are_refused(rows, words):
    with pytest.raises(PromptError, match=words):
        score(tiny.MODEL, tiny.params(), rows)


def test_a_batch_size_of_0_is_refused():
    with pytest.raises(ConfigError, match="batch_size = 0"):
        score(tiny.MODEL, tiny.params(), ROWS, batch_size=0)


@pytest.mark.parametrize("context", [CHUNK - 1, CHUNK + 1, 2 * CHUNK, 150])
def test_any_context_is_scored_to_its_end(context):
    model = tiny.with_config(max_context=context)
    row = tiny.tokens(context, seed=3).tolist()
    (found,) = score(model, tiny.params(), [row], batch_size=1)
    wanted = numpy_llama.next_logprobs(tiny.params(), row, model.config)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=5e-5)


def test_logits_of_all_positions_never_exist_at_once():
    model = tiny.with_config(vocab_size=4000, max_context=1024)
    tokens = jax.ShapeDtypeStruct((8, 1024), np.int32)
    text = _next_logprobs.lower(model, abstract_params(model.config), tokens, tokens).as_text()
    with_vocabulary = re.findall(r"tensor<(\d+)x(\d+)x4000xf32>", text)
    assert max(int(rows) * int(positions) for rows, positions in with_vocabulary) == 8 * CHUNK

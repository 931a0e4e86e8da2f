import functools

import numpy as np
import pytest

from llama2_jax.generate import until
from llama2_jax.generate.decode import LogitsError, generate, row_ids
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.generate.until import CHUNK, generate_until
from llama2_jax.sharding.mesh import MeshConfig
from llama2_jax.sharding.placement import place_tree
from llama2_jax.sharding.rules import make_partitioner
from tests.model import tiny

PROMPTS = [tiny.tokens(n, seed=n).tolist() for n in (9, 3, 14)]
GREEDY = SamplingConfig(max_new_tokens=2 * CHUNK + 5, temperature=0)
make = functools.partial(generate_until, tiny.MODEL, tiny.params(), PROMPTS, seeds=[0, 1, 2])


def wanted(sampling: SamplingConfig, stop_ids: tuple[int, ...] = ()) -> list[list[int]]:
    out = generate(tiny.MODEL, tiny.params(), PROMPTS, sampling, stop_ids=stop_ids, seeds=[0, 1, 2])
    return [row_ids(out, row)[1] for row in range(len(PROMPTS))]


def calls_of(monkeypatch) -> list[int]:
    calls = []
    advance = until.advance
    monkeypatch.setattr(until, "advance", lambda *a, **k: calls.append(k["num_tokens"]) or advance(*a, **k))
    return calls


def test_rows_that_are_never_complete_are_those_of_generate(monkeypatch):
    calls = calls_of(monkeypatch)
    assert make(GREEDY, is_complete=lambda row, ids: False, stop_ids=()) == wanted(GREEDY)
    assert calls == [CHUNK] * 3
    warm = SamplingConfig(max_new_tokens=20, temperature=1.0)
    assert make(warm, is_complete=lambda row, ids: False, stop_ids=()) == wanted(warm)


def test_stop_ids_end_rows_and_are_the_last_of_them():
    stop = wanted(GREEDY)[0][4]
    found = make(GREEDY, is_complete=lambda row, ids: False, stop_ids=(stop,))
    assert [[one for one in row if one != stop] for row in found] == wanted(GREEDY, (stop,))
    assert found[0].index(stop) == len(found[0]) - 1
    assert len(found[0]) < len(wanted(GREEDY)[0])


def test_complete_rows_make_no_more_and_nothing_runs_once_all_are(monkeypatch):
    calls = calls_of(monkeypatch)
    found = make(GREEDY, is_complete=lambda row, ids: len(ids) >= 5, stop_ids=())
    assert calls == [CHUNK]
    assert found == [row[:CHUNK] for row in wanted(GREEDY)]
    calls.clear()
    found = make(GREEDY, is_complete=lambda row, ids: row != 1, stop_ids=())
    assert calls == [CHUNK] * 3  # for row 1 alone
    np.testing.assert_equal([len(ids) for ids in found], [CHUNK, GREEDY.max_new_tokens, CHUNK])


def test_rows_end_at_the_context_and_complete_ones_are_not_asked_again(monkeypatch):
    calls, asked = calls_of(monkeypatch), []

    def is_complete(row: int, ids: list[int]) -> bool:
        asked.append(row)
        return row == 0

    long = SamplingConfig(max_new_tokens=1000, temperature=0)
    found = make(long, is_complete=is_complete, stop_ids=())
    room = [tiny.CONFIG.max_context - len(prompt) for prompt in PROMPTS]  # the context is 64
    assert [len(ids) for ids in found] == [CHUNK, *room[1:]]
    assert calls == [CHUNK] * 4
    assert asked.count(0) == 1


def test_logits_that_are_no_numbers_are_an_error():
    broken = {**tiny.params(), "embedding_VD": np.full_like(tiny.params()["embedding_VD"], np.nan)}
    with pytest.raises(LogitsError, match="the logits of row 0 are not finite"):
        generate_until(
            tiny.MODEL, broken, PROMPTS, GREEDY,
            is_complete=lambda row, ids: False, stop_ids=(), seeds=[0, 1, 2],
        )  # fmt: skip


def test_any_number_of_rows_on_a_mesh(monkeypatch):
    calls = calls_of(monkeypatch)
    partitioner = make_partitioner(MeshConfig(preset="fsdp_tensor", data=2, fsdp=2, tensor=2))
    model = tiny.MODEL.clone(partitioner=partitioner)
    found = generate_until(
        model, place_tree(partitioner, tiny.params()), PROMPTS, GREEDY,
        is_complete=lambda row, ids: len(ids) >= 5, stop_ids=(), seeds=[0, 1, 2],
    )  # fmt: skip
    assert calls == [CHUNK]  # rows that fill the mesh are not waited for
    assert found == [row[:CHUNK] for row in wanted(GREEDY)]

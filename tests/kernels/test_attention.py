"""Every implementation that runs on a CPU against loops in float64: value, log-sum-exp and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from llama2_jax.config import ConfigError
from llama2_jax.kernels import chunked, dispatch, flash_tpu, library, ranges
from llama2_jax.kernels.tiles import Tiles
from tests.kernels import exact

NAMES = ("out", "lse", "dq", "dk", "dv")
JNP = ["reference", "chunked"]
# of chunked: a part of a block, one block, blocks and a rest; small tiles; one large tile and a rest
LENGTHS = [5, 64, 150, 300]
LENGTHS_TPU = [1, 7, 64, 127, 128, 129, 513]
GROUPS = [1, 2, 8]  # heads per key/value head


def attend(impl, needs_lse=True, **kwargs):
    def function(q, k, v, segments):
        return dispatch.attention(q, k, v, segment_ids_BT=segments, impl=impl, needs_lse=needs_lse, **kwargs)

    return function


@functools.cache
def truth(length, groups):
    """Inputs, results of the loops, and of the plain form in the dtype of the inputs."""
    given = exact.inputs(length, groups=groups, kv_heads=1 if groups == 8 else 2)
    return given, exact.attention(given), exact.results(attend("reference"), given)


def assert_about_as_exact(found, plain, wanted):
    """No fixed number: twice the error of the plain form in the same dtype, thrice that of its gradients."""
    # one key: dp - delta is 0, of two numbers that a kernel rounds differently and the plain form alike
    rounding = 1e-7 if found[0].shape[1] > 1 else 5e-6
    for name, a, b, c in zip(NAMES, found, plain, wanted, strict=True):
        allowed = 2 if name in ("out", "lse") else 3
        assert exact.error(a, c) <= allowed * exact.error(b, c) + rounding, name


def assert_exact(found, wanted, tolerance):
    for name, a, b in zip(NAMES, found, wanted, strict=True):
        assert exact.error(a, b) < tolerance, name


@pytest.mark.parametrize("length", LENGTHS)
def test_the_plain_form_equals_the_loops(length):
    _, wanted, plain = truth(length, 2)
    assert_exact(plain, wanted, 1e-6)


@pytest.mark.parametrize("length", LENGTHS)
def test_chunked_equals_the_loops(length):
    given, wanted, plain = truth(length, 2)
    assert_about_as_exact(exact.results(attend("chunked"), given), plain, wanted)


@pytest.mark.parametrize("groups", [1, 8])
def test_chunked_with_large_tiles(groups):
    # from 1,024 tokens on; the loops would take minutes
    given = exact.inputs(1100, groups=groups, kv_heads=1, batch=2)
    for name, a, b in zip(
        NAMES, *(exact.results(attend(impl), given) for impl in ("chunked", "reference")), strict=True
    ):
        assert exact.error(a, b) < 2e-6, name


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("length", LENGTHS_TPU)
def test_tpu_kernels_equal_the_loops(length, groups):
    given, wanted, plain = truth(length, groups)
    assert_about_as_exact(exact.results(attend("tpu_interpret"), given), plain, wanted)


@pytest.mark.parametrize("seed", range(6))
def test_tpu_kernels_with_small_tiles_and_random_documents(seed):
    length = 300 + 41 * seed
    given = exact.inputs(length, groups=2, kv_heads=1, seed=seed)
    plain, wanted = exact.results(attend("reference"), given), exact.attention(given)
    seen = ranges.document_ranges(given.segments)

    def small(q, k, v, segments):
        q, k, v = (jnp.where(segments[..., None, None] == 0, 0, array) for array in (q, k, v))
        out, lse = flash_tpu.attention(
            q, k, v, seen, scale=q.shape[-1] ** -0.5, causal=True, interpret=True,
            tiles=Tiles(rows=256, keys=128, multiple=128),
        )  # fmt: skip
        is_token = segments[..., None] != 0
        return jnp.where(is_token[..., None], out, 0), jnp.where(is_token, lse, -jnp.inf)

    assert_about_as_exact(exact.results(small, given), plain, wanted)


def test_xla_equals_the_loops_without_log_sum_exp():
    given = truth(64, 2)[0]
    wanted = exact.attention(given._replace(d_lse=np.zeros_like(given.d_lse)))
    out, lse, *grads = exact.results(attend("xla", needs_lse=False), given)
    assert lse is None
    for name, a, b in zip(("out", "dq", "dk", "dv"), (out, *grads), (wanted[0], *wanted[2:]), strict=True):
        assert exact.error(a, b) < 5e-6, name


@pytest.mark.parametrize("length", [64, 300])
@pytest.mark.parametrize("impl", [*JNP, "tpu_interpret"])
def test_without_causality_a_document_sees_all_of_itself(impl, length):
    given = exact.inputs(length, groups=2, head_dim=16)
    wanted = exact.attention(given, causal=False, scale=0.3)
    assert_exact(exact.results(attend(impl, causal=False, scale=0.3), given), wanted, 5e-6)


@pytest.mark.parametrize("impl", [*JNP, "tpu_interpret"])
def test_packed_documents_equal_documents_alone(impl):
    lengths = (40, 100, 20)
    given = exact.inputs(160, batch=1, poison=False)
    segments = np.repeat([1, 2, 3], lengths)[None].astype(np.int32)
    packed = exact.results(attend(impl), given._replace(segments=segments))
    first = 0
    for length in lengths:
        part = slice(first, first + length)
        alone = exact.results(attend(impl), exact.Inputs(*(array[:, part] for array in given[:5]), None))
        for name, a, b in zip(NAMES, packed, alone, strict=True):
            np.testing.assert_allclose(a[:, part], b, rtol=5e-6, atol=2e-5, err_msg=name)
        first += length


@pytest.mark.parametrize("length", [9, 150, 300])
@pytest.mark.parametrize("impl", [*JNP, "tpu_interpret"])
def test_a_segment_sees_its_prefix_as_well(impl, length):
    given, prefixes = exact.inputs_with_prefixes(length)
    wanted = exact.attention(given, prefixes=prefixes)
    assert_exact(exact.results(attend(impl, prefix_ids_BT=prefixes), given), wanted, 5e-6)
    assert exact.error(exact.attention(given)[0], wanted[0]) > 0.1  # prefixes matter


def test_prefixes_of_long_rows_are_a_second_loop():
    given, prefixes = exact.inputs_with_prefixes(1100, kv_heads=1, batch=2)
    assert_exact(
        *(exact.results(attend(impl, prefix_ids_BT=prefixes), given) for impl in ("chunked", "reference")),
        2e-6,
    )


@pytest.mark.parametrize("impl", ["chunked", "tpu_interpret"])
def test_prefixes_in_bfloat16_cost_no_more_than_one_more_rounding(impl):
    given, prefixes = exact.inputs_with_prefixes(300, dtype=jnp.bfloat16, batch=2)
    found, plain = (
        exact.results(attend(name, prefix_ids_BT=prefixes), given) for name in (impl, "reference")
    )
    assert_about_as_exact(found, plain, exact.attention(given, prefixes=prefixes))


@pytest.mark.parametrize("impl", [*JNP, "tpu_interpret"])
def test_probabilities_made_from_the_log_sum_exp_sum_to_one(impl):
    given = exact.inputs(150, groups=1, poison=False)
    _, lse_BTN = attend(impl)(*given[:3], given.segments)
    scores = np.einsum("btnh,bsnh->bnts", given.q, given.k).astype(np.float64) * given.q.shape[-1] ** -0.5
    same = given.segments[:, :, None] == given.segments[:, None, :]
    seen = same & np.tri(150, dtype=bool) & (given.segments[:, :, None] != 0)
    with np.errstate(invalid="ignore", over="ignore"):
        probs = np.exp(scores - np.asarray(lse_BTN, np.float64).transpose(0, 2, 1)[..., None])
    sums = np.where(seen[:, None], probs, 0).sum(-1)
    np.testing.assert_allclose(sums, np.broadcast_to((given.segments != 0)[:, None], sums.shape), atol=1e-5)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("impl", ["chunked", "tpu_interpret"])
@pytest.mark.parametrize("length", [150, 300])
def test_bfloat16_is_about_as_exact_as_the_plain_form(impl, length, head_dim):
    given = exact.inputs(length, groups=2, head_dim=head_dim, dtype=jnp.bfloat16, batch=2)
    found, plain = (exact.results(attend(name), given) for name in (impl, "reference"))
    assert all(
        a.dtype == (jnp.float32 if name == "lse" else jnp.bfloat16)
        for name, a in zip(NAMES, found, strict=True)
    )
    assert_about_as_exact(found, plain, exact.attention(given))


@pytest.mark.parametrize(("length", "block"), [(192, 64), (300, 128)], ids=["short", "loop"])
def test_gradients_of_a_key_are_summed_over_queries_in_float32(length, block):
    """In bfloat16 256 + 1 is 256."""
    q, k, v = (jnp.ones((1, length, 1, 64), jnp.bfloat16) for _ in range(3))
    first_key_alone = ranges.KeyRanges(*(jnp.full((1, length), end, jnp.int32) for end in (0, 1)))
    d_lse = jnp.zeros((1, length, 1)).at[0, [0, block, 2 * block]].set(jnp.array([[256.0], [1.0], [1.0]]))
    d_out = jnp.broadcast_to(d_lse[..., None], q.shape).astype(jnp.bfloat16)
    _, pull = jax.vjp(
        lambda k, v: chunked.attention(q, k, v, (first_key_alone,), scale=1.0, causal=False), k, v
    )
    dk, dv = pull((d_out, d_lse))
    assert (dk[0, 0] == 258).all()
    assert (dv[0, 0] == 258).all()


@pytest.mark.parametrize("impl", ["chunked", "tpu_interpret"])
def test_two_runs_are_bitwise_equal(impl):
    given = exact.inputs(300, groups=2)
    for a, b in zip(*(exact.results(attend(impl), given) for _ in range(2)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("queries", "keys"), [(6, 2), (300, 290)])
@pytest.mark.parametrize("impl", ["reference", "chunked", "xla"])
def test_more_queries_than_keys_see_nothing_at_first(impl, queries, keys):
    given = exact.inputs(queries, batch=1, poison=False)
    out, lse = dispatch.attention(
        given.q, given.k[:, :keys], given.v[:, :keys], impl=impl, needs_lse=impl != "xla"
    )
    blind = queries - keys
    assert (np.asarray(out)[:, :blind] == 0).all()
    np.testing.assert_allclose(out[:, blind], given.v[:, 0], rtol=1e-6)  # two query heads, two key heads
    assert lse is None or (np.isneginf(lse) == (np.arange(queries) < blind)[None, :, None]).all()


@pytest.mark.parametrize(
    ("kernel", "head_dim", "length", "how"),
    [
        ("splash", 128, 200, {}),
        ("triton", 128, 200, {"causal": True}),
        ("triton", 64, 300, {"causal": True}),
        ("triton", 64, 140, {"causal": False}),
    ],
)
def test_kernels_of_jax_equal_the_loops(kernel, head_dim, length, how):
    given = exact.inputs(length, groups=2, head_dim=head_dim, batch=2, poison=False)
    wanted = exact.attention(given._replace(d_lse=np.zeros_like(given.d_lse)), scale=0.1, **how)

    def attend(q, k, v, segments):
        out = getattr(library, kernel)(q, k, v, segments, scale=0.1, interpret=True, **how)
        # rows of padding see one another in them; the interface zeroes them
        return jnp.where((segments != 0)[..., None, None], out, 0), None

    out, _, *grads = exact.results(attend, given)
    for name, a, b in zip(("out", "dq", "dk", "dv"), (out, *grads), (wanted[0], *wanted[2:]), strict=True):
        assert exact.error(a, b) < 5e-6, name


def test_gradients_of_a_key_head_are_summed_in_float32_by_triton():
    given = exact.inputs(128, groups=8, batch=1, dtype=jnp.bfloat16, poison=False)

    def gradients(k, v):
        call = functools.partial(library.triton, scale=0.1, causal=True, interpret=True)
        _, pull = jax.vjp(lambda k, v: call(given.q, k, v, given.segments), k, v)
        return pull(jnp.asarray(given.d_out))

    one_for_eight = gradients(given.k, given.v)
    one_for_one = gradients(*(jnp.repeat(array, 8, axis=2) for array in (given.k, given.v)))
    for found, heads in zip(one_for_eight, one_for_one, strict=True):
        summed = heads.astype(jnp.float32).reshape(*given.k.shape[:3], 8, -1).sum(3)
        np.testing.assert_array_equal(found, summed.astype(jnp.bfloat16))


@pytest.mark.parametrize("impl", ["reference", "chunked", "tpu_interpret"])
def test_fewer_queries_than_keys_are_the_last_ones(impl):
    given = exact.inputs(140, batch=2, poison=False)
    whole, part = (
        dispatch.attention(given.q[:, first:], given.k, given.v, impl=impl, needs_lse=True)
        for first in (0, 100)
    )
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_allclose(a[:, 100:], b, rtol=2e-6, atol=5e-6)


def test_float64_stays_float64_in_the_reference_and_its_gradients_are_differences():
    jax.config.update("jax_enable_x64", True)
    try:
        given = exact.inputs(9, groups=2, head_dim=4, poison=False)
        q, k, v = (jnp.asarray(array, jnp.float64) for array in given[:3])

        def total(q, k, v):
            out, lse = attend("reference")(q, k, v, given.segments)
            assert out.dtype == jnp.float64
            return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum() + jnp.where(
                jnp.isneginf(lse), 0, lse
            ).sum()

        d_out, d_lse = (jnp.asarray(array, jnp.float64) for array in given[3:5])
        found = exact.results(attend("reference"), given._replace(q=q, k=k, v=v, d_out=d_out, d_lse=d_lse))
        assert_exact(found, exact.attention(given), 1e-12)
        check_grads(total, (q, k, v), order=1, modes=["rev"], eps=1e-6, rtol=1e-6, atol=1e-8)
    finally:
        jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize("impl", ["chunked", "tpu_interpret"])
def test_float32_is_served_where_64_bits_are_enabled_and_float64_refused(impl):
    jax.config.update("jax_enable_x64", True)
    try:
        given = exact.inputs(300, batch=2, poison=False)
        found = exact.results(attend(impl), given)
        assert all(array.dtype == jnp.float32 for array in found)
        with pytest.raises(ConfigError, match="not float64. These can: reference"):
            dispatch.attention(*(jnp.asarray(array, jnp.float64) for array in given[:3]), impl=impl)
    finally:
        jax.config.update("jax_enable_x64", False)

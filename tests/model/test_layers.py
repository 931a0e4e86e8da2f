import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama2_jax.model.layers import (
    FeedForward,
    RMSNorm,
    apply_rotary,
    look_up,
    multiply,
    rotary_angles,
    scaled,
)
from llama2_jax.model.transformer import init_params
from llama2_jax.sharding.rules import single_device
from tests.model import numpy_llama, tiny


def test_rms_norm_divides_by_the_root_mean_square():
    x = np.array([[3.0, -4.0], [1e-3, 0.0]], np.float32)
    scale = np.array([2.0, 0.5], np.float32)
    found = RMSNorm(1e-5).apply({"params": {"scale_D": scale}}, x)
    wanted = [
        [3 / np.sqrt(12.5 + 1e-5) * 2, -4 / np.sqrt(12.5 + 1e-5) * 0.5],
        [1e-3 / np.sqrt(0.5e-6 + 1e-5) * 2, 0.0],
    ]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_rms_norm_of_bfloat16_is_computed_in_float32_and_cast_before_the_scale():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 64)) * 100, jnp.bfloat16)
    scale = np.linspace(0.5, 2, 64, dtype=np.float32)
    found = RMSNorm(1e-5).apply({"params": {"scale_D": scale}}, x)
    x64 = np.asarray(x, np.float64)
    normed = (x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + 1e-5)).astype(jnp.bfloat16)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(found), normed * scale.astype(jnp.bfloat16))


def test_gradients_of_bfloat16_are_summed_over_tokens_in_float32():
    """In bfloat16 a running sum of equal terms stands still at 256 of them."""
    num_tokens = 32_768
    d_rows = jnp.ones((1, num_tokens, 2), jnp.bfloat16)
    ids = jnp.zeros((1, num_tokens), jnp.int32).at[0, :1000].set(1)
    table = jnp.full((3, 2), 1 + 2**-10, jnp.float32)
    rows, pull = jax.vjp(lambda table: look_up(table, ids, "bfloat16", single_device()), table)
    assert rows.dtype == jnp.bfloat16
    (d_table,) = pull(d_rows)
    assert d_table.dtype == jnp.float32
    np.testing.assert_array_equal(d_table[:, 0], [num_tokens - 1000, 1000, 0])
    x = jnp.full((1, num_tokens, 2), 0.75, jnp.bfloat16)
    _, pull = jax.vjp(scaled, x, jnp.array([2.0, 1.0]))
    d_x, d_scale = pull(d_rows)
    np.testing.assert_array_equal(d_scale, [0.75 * num_tokens] * 2)
    assert d_x.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(d_x[0, 0], np.float32), [2.0, 1.0])


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "contract", "forward", "dx", "dweight"),
    [
        ((6, 8), (8, 5), 1, "xd,df->xf", "xf,df->xd", "xd,xf->df"),
        ((2, 3, 8), (8, 4, 5), 1, "btd,dnh->btnh", "btnh,dnh->btd", "btd,btnh->dnh"),
        ((2, 3, 4, 5), (4, 5, 8), 2, "btnh,nhd->btd", "btd,nhd->btnh", "btnh,btd->nhd"),
    ],
)
@pytest.mark.parametrize("keep_cast", [True, False])
@pytest.mark.parametrize("out_dtype", ["bfloat16", "float32"])
def test_multiply_and_its_gradients(
    x_shape, weight_shape, contract, forward, dx, dweight, out_dtype, keep_cast
):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(x_shape), jnp.bfloat16)
    weight = jnp.asarray(rng.standard_normal(weight_shape), jnp.float32)
    found, pull = jax.vjp(lambda x, weight: multiply(x, weight, contract, out_dtype, keep_cast), x, weight)
    d_out = jnp.asarray(rng.standard_normal(found.shape), out_dtype)
    d_x, d_weight = pull(d_out)
    x64, weight64, d64 = (np.asarray(a.astype(jnp.bfloat16), np.float64) for a in (x, weight, d_out))
    assert (found.dtype, d_x.dtype, d_weight.dtype) == (out_dtype, jnp.bfloat16, jnp.float32)
    rounding = 2**-7 if out_dtype == "bfloat16" else 1e-6
    np.testing.assert_allclose(
        found.astype(float), np.einsum(forward, x64, weight64), rtol=rounding, atol=rounding
    )
    np.testing.assert_allclose(d_x.astype(float), np.einsum(dx, d64, weight64), rtol=2**-7, atol=2**-7)
    # of inputs in bfloat16, but not itself rounded to it
    np.testing.assert_allclose(d_weight, np.einsum(dweight, x64, d64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("head_dim", "base"), [(128, 10_000.0), (8, 10_000.0), (16, 500_000.0)])
def test_rope_rotates_interleaved_pairs_as_complex_numbers(head_dim, base):
    x = np.random.default_rng(0).standard_normal((2, 5, 3, head_dim)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3, 4], [7, 0, 1, 4095, 2]], np.int32)
    found = apply_rotary(x, *rotary_angles(positions, head_dim=head_dim, base=base))
    wanted = np.zeros(x.shape)
    for b, t, n in np.ndindex(2, 5, 3):
        wanted[b, t, n] = numpy_llama.rotate(x[b, t, n].astype(np.float64), int(positions[b, t]), base)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found[:, :3], wanted[:, :3], atol=2e-6)
    np.testing.assert_allclose(found, wanted, atol=2e-3)  # a float32 angle of 4095 has 2.4e-4 of error


def test_rope_on_a_tpu_gives_the_same_bits_and_gradients():
    x, d_out = np.random.default_rng(0).standard_normal((2, 2, 5, 3, 16))
    x, d_out = jnp.asarray(x, jnp.bfloat16), jnp.asarray(d_out, jnp.bfloat16)
    angles = rotary_angles(np.array([[0, 1, 2, 3, 4], [7, 0, 1, 4095, 2]]), head_dim=16, base=10_000.0)

    def turned(platform):
        found, transpose = jax.vjp(lambda x: apply_rotary(x, *angles, platform=platform), x)
        return found, *transpose(d_out)

    for found, wanted in zip(turned("tpu"), turned("cpu"), strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_array_equal(found, wanted)


def test_rope_scores_depend_on_the_distance_only():
    q, k = np.random.default_rng(1).standard_normal((2, 1, 1, 1, 8)).astype(np.float32)

    def score(at_q, at_k):
        def turn(x, at):
            return apply_rotary(x, *rotary_angles(np.array([[at]]), head_dim=8, base=10_000.0))

        return float((turn(q, at_q) * turn(k, at_k)).sum())

    assert score(5, 2) == pytest.approx(score(25, 22), abs=1e-5)
    assert abs(score(5, 2) - score(2, 5)) > 1e-2


def test_swiglu_is_down_of_silu_gate_times_up():
    weights = numpy_llama.layer_weights(tiny.params(), 0)["feed_forward"]
    x = np.random.default_rng(0).standard_normal((2, 3, 32)).astype(np.float32)
    float32 = {name: w.astype(np.float32) for name, w in weights.items()}
    found = FeedForward(tiny.CONFIG, single_device()).apply({"params": float32}, x)
    wanted = numpy_llama.swiglu(x, weights["w_gate_DF"], weights["w_up_DF"], weights["w_down_FD"])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_init_is_normal_with_smaller_residual_projections_and_ones_for_norms():
    params = init_params(tiny.with_config(num_layers=8, model_width=64, init_stddev=0.05), jax.random.key(0))
    layers = params["layers"]
    for name in ("w_q_DNH", "w_k_DKH", "w_v_DKH"):
        assert float(layers["attention"][name].std()) == pytest.approx(0.05, rel=0.05)
    for leaf in (layers["attention"]["w_o_NHD"], layers["feed_forward"]["w_down_FD"]):
        assert float(leaf.std()) == pytest.approx(0.05 / 4, rel=0.05)  # sqrt(2 * 8) = 4
    assert float(params["embedding_VD"].std()) == pytest.approx(0.05, rel=0.05)
    assert float(params["unembedding_DV"].std()) == pytest.approx(0.05, rel=0.05)
    for norm in (layers["attention_norm"], layers["feed_forward_norm"], params["final_norm"]):
        assert (np.asarray(norm["scale_D"]) == 1).all()
    w = np.asarray(layers["feed_forward"]["w_up_DF"])
    assert not np.allclose(w[0], w[1])  # each layer has its own key

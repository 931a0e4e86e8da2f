"""Attention and its gradients by loops in numpy float64, and inputs of packed documents."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Inputs(NamedTuple):
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    d_out: np.ndarray
    d_lse: np.ndarray
    segments: np.ndarray


def random_segments(rng, batch, length):
    """Row 0: documents cut at random and padding at the end; row 1: one document; row 2: padding alone."""
    segments = np.ones((batch, length), np.int32)
    cuts = np.sort(rng.integers(0, length + 1, 4))
    segments[0] = 1 + np.searchsorted(cuts[:3], np.arange(length), side="right")
    segments[0, cuts[3] :] = 0
    segments[0, cuts[0] : (cuts[0] + cuts[1]) // 2] = 0  # padding between documents
    if batch > 2:
        segments[2] = 0
    return segments


def random_prefixes(rng, segments):
    """Every segment of a row gets an earlier one of it as its prefix, or none."""
    prefixes = np.zeros_like(segments)
    for row, own in zip(segments, prefixes, strict=True):
        found = [0]
        for segment in range(1, row.max() + 1):
            own[row == segment] = rng.choice(found)
            found += [segment] if (row == segment).any() else []
    return prefixes


def inputs(length, *, groups=1, kv_heads=2, head_dim=64, batch=3, seed=0, dtype=jnp.float32, poison=True):
    """Random tensors; what padding holds is NaN."""
    rng = np.random.default_rng([seed, length, groups])
    heads = kv_heads * groups
    segments = random_segments(rng, batch, length)
    shapes = [(batch, length, n, head_dim) for n in (heads, kv_heads, kv_heads, heads)]
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    if poison:
        arrays = [np.where(segments[..., None, None] == 0, np.nan, array) for array in arrays]
    d_lse = rng.standard_normal((batch, length, heads)).astype(np.float32)
    if poison:
        d_lse = np.where(segments[..., None] == 0, np.nan, d_lse)
    q, k, v, d_out = (np.array(jnp.asarray(array, dtype)) for array in arrays)
    return Inputs(q, k, v, d_out, d_lse, segments)


def inputs_with_prefixes(length, **kwargs):
    """Inputs whose first row has eight segments, and the prefix of every token."""
    given = inputs(length, groups=2, poison=False, **kwargs)
    rng = np.random.default_rng(length)
    segments = np.array(given.segments)
    segments[0] = np.sort(rng.integers(1, 9, length))
    segments[1] = np.searchsorted([0.4 * length, 0.6 * length, 0.9 * length], np.arange(length), side="right")
    segments[1] = (segments[1] + 1) % 4  # 1, 2, 3, and padding at the end
    for array in given[:5]:
        array[segments == 0] = np.nan
    prefixes = random_prefixes(rng, segments)
    prefixes[1] = np.where(segments[1] > 1, 1, 0)  # a prompt and two answers
    return given._replace(segments=segments), prefixes


def attention(given, *, scale=None, causal=True, prefixes=None):
    """out, lse, dq, dk, dv in float64: one query after another, one head after another."""
    prefixes = np.zeros_like(given.segments) if prefixes is None else prefixes
    q, k, v, d_out, d_lse = (np.nan_to_num(array.astype(np.float64)) for array in given[:5])
    batch, length, heads, head_dim = q.shape
    groups = heads // k.shape[2]
    scale = head_dim**-0.5 if scale is None else scale
    out, lse = np.zeros(q.shape), np.full(q.shape[:3], -np.inf)
    dq, dk, dv = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
    for b in range(batch):
        for t in range(length):
            segment = given.segments[b, t]
            if segment == 0:
                continue
            seen = [s for s in range(length) if given.segments[b, s] == segment and (s <= t or not causal)]
            if prefix := prefixes[b, t]:
                seen = [s for s in range(length) if given.segments[b, s] == prefix] + seen
            for n in range(heads):
                keys, values = k[b, seen, n // groups], v[b, seen, n // groups]
                scores = keys @ q[b, t, n] * scale
                lse[b, t, n] = np.log(np.exp(scores - scores.max()).sum()) + scores.max()
                probs = np.exp(scores - lse[b, t, n])
                out[b, t, n] = probs @ values
                d_probs = values @ d_out[b, t, n]
                d_scores = probs * (d_probs - d_probs @ probs + d_lse[b, t, n]) * scale
                dq[b, t, n] = d_scores @ keys
                dk[b, seen, n // groups] += d_scores[:, None] * q[b, t, n]
                dv[b, seen, n // groups] += probs[:, None] * d_out[b, t, n]
    return [out, lse, dq, dk, dv]


def results(attend, given):
    """out, lse, dq, dk, dv of a function of q, k, v and segments that gives output and log-sum-exp."""

    @jax.jit
    def run(q, k, v, d_out, d_lse):
        (out, lse), pull = jax.vjp(lambda *qkv: tuple(attend(*qkv, given.segments)), q, k, v)
        if lse is None:
            return out, None, *pull((d_out, None))
        return out, lse, *pull((d_out, d_lse))

    return run(*given[:5])


def error(found, wanted):
    """‖found - wanted‖ / ‖wanted‖; -inf must stand in the same places."""
    found, wanted = np.asarray(found).astype(np.float64), np.asarray(wanted)
    np.testing.assert_array_equal(np.isneginf(found), np.isneginf(wanted))
    finite = np.isfinite(wanted)
    assert np.isfinite(found[finite]).all()
    return np.linalg.norm(found[finite] - wanted[finite]) / max(np.linalg.norm(wanted[finite]), 1e-30)


def assert_no_race():
    """After a run with race detection: newer versions of jax raise, older ones only print and remember."""
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    races = getattr(interpret_pallas_call, "races", None)
    assert not getattr(races, "races_found", False)

"""What an implementation does not serve is refused by name, with those that serve it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.kernels import dispatch, implementations, ranges
from tests.kernels import exact

IDS = np.ones((1, 8), np.int32)


def arrays(heads=4, kv_heads=2, head_dim=64, length=8, keys=8, dtype=jnp.float32):
    shapes = [(1, n, m, head_dim) for n, m in ((length, heads), (keys, kv_heads), (keys, kv_heads))]
    return [jnp.ones(shape, dtype) for shape in shapes]


@pytest.mark.parametrize(
    ("impl", "platform", "kwargs", "shapes", "message"),
    [
        ("tpu", "cpu", {}, {}, r"'tpu' cannot serve this: it runs on tpu, this is cpu.*chunked"),
        ("hopper", "cpu", {}, {}, r"'hopper' cannot serve this: it runs on gpu or cuda, this is cpu"),
        (
            "hopper",
            "gpu",
            {},
            {"dtype": jnp.bfloat16},
            r"it runs on GPUs of compute capability 9.0, this one has 8.0.* These can: reference, chunked",
        ),
        (
            "tpu",
            "tpu",
            {},
            {"head_dim": 48},
            r"takes head_dim 64 or 128, not 48. These can: reference, chunked, xla",
        ),
        ("tpu", "tpu", {}, {"dtype": jnp.float16}, r"takes bfloat16 or float32, not float16"),
        ("cudnn", "cuda", {"segment_ids_BT": IDS}, {"dtype": jnp.bfloat16}, r"cannot keep documents apart"),
        ("cudnn", "cuda", {}, {}, r"takes bfloat16 or float16, not float32"),
        ("xla", "cpu", {"needs_lse": True}, {}, r"no log-sum-exp"),
        ("splash", "tpu", {"needs_lse": True}, {}, r"no log-sum-exp"),
        ("cudnn", "cuda", {"needs_lse": True}, {"dtype": jnp.bfloat16}, r"no log-sum-exp"),
        (
            "cudnn",
            "cuda",
            {},
            {"keys": 12, "dtype": jnp.bfloat16},
            r"queries must be the same tokens as keys",
        ),
        ("triton", "cuda", {}, {}, r"takes bfloat16 or float16, not float32"),
        ("triton", "cuda", {"needs_lse": True}, {"dtype": jnp.bfloat16}, r"no log-sum-exp"),
        ("triton", "tpu", {}, {"dtype": jnp.bfloat16}, r"'triton' cannot serve this: it runs on gpu or cuda"),
        ("splash", "tpu", {"causal": False}, {}, r"causal only"),
        ("splash", "tpu", {}, {"keys": 12}, r"queries must be the same tokens as keys"),
        ("flash", "cpu", {}, {}, r"attention_impl"),
    ],
)
def test_what_is_not_served_is_refused(impl, platform, kwargs, shapes, message):
    with pytest.raises(ConfigError, match=message):
        dispatch.attention(
            *arrays(**shapes), impl=impl, placement=dispatch.unsharded(platform, "8.0"), **kwargs
        )


def test_queries_split_over_devices_are_not_the_same_tokens_as_keys():
    placement = dispatch.unsharded("tpu")._replace(query_shards=2)
    with pytest.raises(ConfigError, match="the same tokens as keys, not split over 'sequence'"):
        dispatch.attention(*arrays(), impl="splash", placement=placement)


def test_key_heads_are_repeated_until_every_shard_has_whole_ones():
    given = exact.inputs(20, groups=2, kv_heads=3)
    wanted = dispatch.attention(*given[:3], segment_ids_BT=given.segments)

    def in_halves(function, arguments, dims, out_dims):
        def half(number):
            return function(
                *(
                    jnp.split(array, 2, axis=2)[number] if len(names) == 4 else array
                    for array, names in zip(arguments, dims, strict=True)
                )
            )

        return tuple(jnp.concatenate(parts, axis=2) for parts in zip(half(0), half(1), strict=True))

    placement = dispatch.unsharded("cpu")._replace(head_shards=2, map_shards=in_halves)
    found = dispatch.attention(*given[:3], segment_ids_BT=given.segments, placement=placement)
    np.testing.assert_allclose(found.out_BTNH, wanted.out_BTNH, rtol=1e-5, atol=1e-6)


def hopper_refusals(monkeypatch, version=(0, 11, 2), **changes):
    request = implementations.Request("gpu", 128, "bfloat16", capability="9.0")._replace(**changes)
    monkeypatch.setattr(jax.version, "__version_info__", version)
    return implementations.IMPLEMENTATIONS["hopper"].refusals(request)


def test_what_the_hopper_kernels_serve(monkeypatch):
    assert hopper_refusals(monkeypatch) == []
    assert hopper_refusals(monkeypatch, dtype="float16", head_dim=64, causal=False, needs_lse=True) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"head_dim": 96}, "it takes head_dim 64 or 128, not 96"),
        ({"dtype": "float32"}, "it takes bfloat16 or float16, not float32"),
        ({"capability": "10.0"}, "it runs on GPUs of compute capability 9.0, this one has 10.0"),
        ({"platform": "tpu"}, "it runs on gpu or cuda, this is tpu"),
        ({"version": (0, 10, 2)}, f"it needs jax 0.11 or later, this is {jax.__version__}"),
    ],
)
def test_what_the_hopper_kernels_refuse(changes, reason, monkeypatch):
    assert hopper_refusals(monkeypatch, **changes) == [reason]


@pytest.mark.parametrize("capability", ["7.5", "", "gfx942"])
def test_jax_triton_kernel_needs_an_ampere_gpu(capability):
    request = implementations.Request("gpu", 128, "bfloat16", capability=capability)
    has = capability or "none"
    reason = f"it runs on GPUs of compute capability 8.0 or later, this one has {has}"
    assert implementations.IMPLEMENTATIONS["triton"].refusals(request) == [reason]


@pytest.mark.parametrize(("impl", "platform"), [("tpu", "tpu"), ("splash", "tpu"), ("triton", "cuda")])
def test_kernels_that_do_not_compile_with_64_bits_enabled_are_refused_and_auto_takes_the_loop(impl, platform):
    placement, given = dispatch.unsharded(platform, "8.0"), arrays(dtype=jnp.bfloat16)
    jax.config.update("jax_enable_x64", True)
    try:
        with pytest.raises(ConfigError, match="it does not compile where jax_enable_x64 is on"):
            dispatch.attention(*given, impl=impl, placement=placement)
        out = dispatch.attention(*given, placement=placement).out_BTNH
    finally:
        jax.config.update("jax_enable_x64", False)
    np.testing.assert_array_equal(out, given[2][:, :, :1].repeat(4, axis=2))  # all values are 1


def test_decoding_is_refused_in_the_same_way():
    q, k, _ = arrays()
    with pytest.raises(ConfigError, match="it runs on tpu, this is cpu"):
        dispatch.decode(q, k.swapaxes(1, 2), k.swapaxes(1, 2), jnp.ones((1, 8, 8), bool), impl="tpu")


def test_a_cache_that_does_not_fit_is_refused():
    q, k, _ = arrays()
    cache, mask = k.swapaxes(1, 2), jnp.ones((1, 8, 8), bool)
    with pytest.raises(ConfigError, match="float32, bfloat16, bfloat16; cast them"):
        dispatch.decode(q, *[cache.astype(jnp.bfloat16)] * 2, mask)
    with pytest.raises(ConfigError, match="they must be equal"):
        dispatch.decode(q, cache, cache[:, :, :4], mask)
    with pytest.raises(ConfigError, match="4 query heads are not a multiple of 3"):
        dispatch.decode(q, *[jnp.ones((1, 3, 8, 64))] * 2, mask)
    with pytest.raises(
        ConfigError, match=r"the mask has shape \(1, 8, 8\), 8 tokens and 9 slots need \(1, 8, 9\)"
    ):
        dispatch.decode(q, *[jnp.ones((1, 2, 9, 64))] * 2, mask)


def test_dtypes_that_differ():
    q, k, v = arrays()
    with pytest.raises(ConfigError, match="float32, float32, bfloat16; cast them"):
        dispatch.attention(q, k, v.astype(jnp.bfloat16))


def test_shapes_that_differ():
    q, k, v = arrays()
    with pytest.raises(ConfigError, match="must be equal"):
        dispatch.attention(q, k, v[:, :4])
    with pytest.raises(ConfigError, match="head dim must be equal"):
        dispatch.attention(q[..., :32], k, v)
    with pytest.raises(ConfigError, match=r"4 query heads are not a multiple of 3 key/value heads"):
        dispatch.attention(*arrays(kv_heads=3))
    with pytest.raises(ConfigError, match=r"segment ids have shape \(1, 8\), q \(1, 4\)"):
        dispatch.attention(q[:, :4], k, v, segment_ids_BT=IDS)
    with pytest.raises(ConfigError, match=r"prefix ids have shape \(1, 8\), segment ids None"):
        dispatch.attention(q, k, v, prefix_ids_BT=IDS)
    with pytest.raises(ConfigError, match="a prefix is an earlier segment of the row"):
        dispatch.attention(q, k, v, segment_ids_BT=IDS, prefix_ids_BT=IDS)


def test_prefixes_need_an_implementation_with_a_log_sum_exp():
    with pytest.raises(ConfigError, match="'xla' cannot serve this: it gives no log-sum-exp"):
        dispatch.attention(*arrays(), segment_ids_BT=IDS, prefix_ids_BT=np.zeros_like(IDS), impl="xla")


def test_segment_ids_that_decrease():
    ids = np.array([[1, 1, 2, 2, 1, 1, 0, 0]])
    with pytest.raises(ConfigError, match="row 0 document 1 begins after document 2; number the documents"):
        dispatch.attention(*arrays(), segment_ids_BT=ids)
    with pytest.raises(ConfigError, match="row 1 document 1 begins after document 1; .* in one piece"):
        ranges.check_segment_ids(np.array([[1, 1, 1, 1], [1, 0, 1, 1]]))
    with pytest.raises(ConfigError, match="document 1 begins after document 2"):
        ranges.check_segment_ids(np.array([[2, 2, 1, 1]], np.uint8))
    ranges.check_segment_ids(np.array([[1, 1, 3, 3, 0, 0], [0, 0, 0, 0, 0, 0], [2, 2, 2, 7, 7, 0]]))


def test_auto_says_once_what_it_chose(capsys):
    implementations.say_once.cache_clear()
    for _ in range(2):
        dispatch.attention(*arrays(head_dim=10))
    assert capsys.readouterr().err == "attention on cpu: chunked\n"


def test_a_kernel_that_does_not_decode_says_so_once(capsys):
    implementations.say_once.cache_clear()
    q, k, _ = arrays(length=1)
    cache, mask = k.swapaxes(1, 2), jnp.ones((1, 1, 8), bool)
    for impl in ("splash", "splash", "reference"):
        dispatch.decode(q, cache, cache, mask, impl=impl, placement=dispatch.unsharded("tpu"))
    assert capsys.readouterr().err == (
        "attention of one token to a cache: plain jnp, 'splash' has no kernel for it\n"
    )


def test_several_tokens_to_a_cache_are_said_to_be_that(capsys):
    implementations.say_once.cache_clear()
    q, k, _ = arrays()
    cache = k.swapaxes(1, 2)
    dispatch.decode(
        q, cache, cache, jnp.ones((1, 8, 8), bool), impl="tpu", placement=dispatch.unsharded("tpu")
    )
    assert capsys.readouterr().err == (
        "attention of several tokens to a cache: plain jnp, 'tpu' has no kernel for it\n"
    )


def test_who_decodes_is_chosen_for_the_device(monkeypatch):
    asked = []

    def choose(impl, request):
        asked.append((impl, request))
        return implementations.IMPLEMENTATIONS["chunked"]

    monkeypatch.setattr(dispatch, "choose", choose)
    q, k, _ = arrays(length=1, dtype=jnp.bfloat16)
    cache, placement = k.swapaxes(1, 2), dispatch.unsharded("gpu", "9.0")
    dispatch.decode(q, cache, cache, jnp.ones((1, 1, 8), bool), impl="hopper", placement=placement)
    assert asked == [("hopper", implementations.Request("gpu", 64, "bfloat16", capability="9.0"))]


def test_lengths_that_cudnn_does_not_take_are_refused(monkeypatch):
    def refuse(*args, **kwargs):
        raise NotImplementedError("Unsupported sequence length Q 513, KV 513.")

    monkeypatch.setattr(jax.nn, "dot_product_attention", refuse)
    q, k, v = (jnp.zeros((1, 513, 2, 64), jnp.bfloat16) for _ in range(3))
    placement = dispatch.unsharded("gpu", "9.0")
    with pytest.raises(ConfigError, match="'cudnn' cannot serve this: Unsupported .* 513. Use 'hopper' or"):
        dispatch.attention(q, k, v, impl="cudnn", placement=placement)


def test_cudnn_is_told_scale_and_causality(monkeypatch):
    told = []
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, k, v, **how: told.append(how) or q)
    q, k, v = arrays(dtype=jnp.bfloat16)
    for causal in (True, False):
        dispatch.attention(
            q, k, v, impl="cudnn", causal=causal, scale=0.3, placement=dispatch.unsharded("gpu", "9.0")
        )
    assert told == [
        {"scale": 0.3, "is_causal": causal, "implementation": "cudnn"} for causal in (True, False)
    ]


def test_auto_takes_a_kernel_where_one_serves_and_the_loop_elsewhere(monkeypatch):
    def chosen(platform, head_dim=64, dtype="bfloat16", capability=""):
        return implementations.choose(
            "auto", implementations.Request(platform, head_dim, dtype, capability=capability)
        )

    by_name = implementations.IMPLEMENTATIONS
    assert chosen("tpu") is by_name["tpu"]
    assert chosen("tpu", head_dim=96) is chosen("cpu") is chosen("another") is by_name["chunked"]
    monkeypatch.setattr(jax.version, "__version_info__", (0, 11, 2))
    for name in ("gpu", "cuda"):
        assert chosen(name, capability="9.0") is by_name["hopper"]
        assert chosen(name, capability="8.0") is chosen(name, capability="12.0") is by_name["triton"]
        assert chosen(name, capability="7.5") is chosen(name, capability="gfx942") is by_name["chunked"]
        assert chosen(name, capability="9.0", dtype="float32") is by_name["chunked"]
    monkeypatch.setattr(jax.version, "__version_info__", (0, 10, 2))
    assert chosen("gpu", capability="9.0") is by_name["triton"]


def test_padding_may_hold_anything_and_gets_no_gradient():
    q, k, v = (np.array(array) for array in arrays())
    ids = np.array([[1, 1, 1, 2, 2, 0, 0, 0]])
    for array in (q, k, v):
        array[:, 5:] = np.nan
    for impl in ("reference", "chunked", "xla", "tpu_interpret"):

        def total(q, k, v, impl=impl):
            return dispatch.attention(q, k, v, segment_ids_BT=ids, impl=impl).out_BTNH.sum()

        value, grads = jax.value_and_grad(total, argnums=(0, 1, 2))(q, k, v)
        assert np.isfinite(value)
        for grad in grads:
            assert (np.asarray(grad)[:, 5:] == 0).all()
            assert np.isfinite(grad).all()

import contextlib
import logging
import multiprocessing
import resource
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama2_jax.config import ConfigError
from llama2_jax.model.transformer import Transformer
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.structs import TrainState
from llama2_jax.train.checkpoint import (
    Checkpointer,
    CheckpointError,
    Restored,
    read_meta,
    read_params,
    stored_steps,
    write_params,
)
from llama2_jax.train.optimizer import OptimizerConfig, make_optimizer
from llama2_jax.train.step import abstract_state, init_state
from tests.train.tiny_run import MODEL, assert_bitwise_equal, partitioner


def state_of(step: int, *, width: int = 8) -> TrainState:
    generator = np.random.default_rng(step)  # noise: zeros would compress to nothing
    draw = generator.standard_normal((width, width)).astype(np.float32)
    return TrainState(
        step=jnp.array(step, jnp.int32),
        params={"layer": {"w_DF": jnp.asarray(draw)}, "scale_D": jnp.full((width,), step, jnp.float32)},
        opt_state={"count": jnp.array(step)},
    )


def abstract_of(state: TrainState) -> TrainState:
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one), state)


ABSTRACT = abstract_of(state_of(0))


def save_steps(workdir: Path, steps: list[int], *, width: int = 8, **options: int) -> list[int]:
    with contextlib.closing(Checkpointer(workdir, **options)) as checkpointer:
        for step in steps:
            save(checkpointer, state_of(step, width=width), {"step": step, "name": "test"})
        checkpointer.wait()
        return checkpointer.steps()


def save(checkpointer: Checkpointer, state: TrainState, meta: dict[str, object]) -> None:
    checkpointer.save(int(state.step), state.params, state.opt_state, meta)


def restore(checkpointer: Checkpointer, abstract: TrainState) -> Restored | None:
    return checkpointer.restore_latest(abstract.params, abstract.opt_state)


def state_in(restored: Restored) -> TrainState:
    return TrainState(jnp.array(restored.step, jnp.int32), restored.params, restored.rest)


def test_stored_steps_are_those_that_are_complete(tmp_path: Path) -> None:
    assert stored_steps(tmp_path) == []
    (tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir(parents=True)  # of a killed process
    assert stored_steps(tmp_path) == []
    assert (tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp").is_dir()  # reading removes nothing
    save_steps(tmp_path, [1, 2])
    assert stored_steps(tmp_path) == [1, 2]
    assert not (tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp").exists()  # a run gets its space back


def newest(workdir: Path) -> Path:
    return max(
        (p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name)
    )


def truncate_largest(checkpoint: Path) -> None:
    largest = max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def delete_parameters(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "params")


def delete_one_file(checkpoint: Path) -> None:
    next(p for p in sorted((checkpoint / "rest").rglob("*")) if p.is_file() and "ocdbt" in str(p)).unlink()


def garble_meta(checkpoint: Path) -> None:
    (checkpoint / "meta" / "metadata").write_text("{")


@contextlib.contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Writes beyond ``num_bytes`` fail, as on a full disk (Python ignores the signal that comes with it)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_state_and_meta_come_back(tmp_path: Path) -> None:
    save_steps(tmp_path, [3])
    with contextlib.closing(Checkpointer(tmp_path)) as checkpointer:
        restored = restore(checkpointer, ABSTRACT)
    assert restored is not None
    assert_bitwise_equal(state_in(restored), state_of(3))
    assert restored.meta == {"step": 3, "name": "test"}


@pytest.mark.parametrize("name", ["llama[7b]", "run?", "run*"])
def test_a_folder_in_which_checkpoints_could_not_be_read_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"has one of \* \? \[ in it, .* name a folder without them"):
        Checkpointer(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_symbolic_link_stands_in_for_such_a_folder(tmp_path: Path) -> None:
    (tmp_path / "llama[7b]").mkdir()
    link = tmp_path / "link"
    link.symlink_to("llama[7b]")
    save_steps(link, [1])
    for path in (link, tmp_path / "llama[7b]"):  # read under the other name too
        assert_bitwise_equal(read_params(path, ABSTRACT.params), state_of(1).params)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    with contextlib.closing(Checkpointer(tmp_path)) as checkpointer:
        assert restore(checkpointer, ABSTRACT) is None


def test_keep_last(tmp_path: Path) -> None:
    assert save_steps(tmp_path, [1, 2, 3, 4], keep_last=2) == [3, 4]


def test_keep_every_besides_the_last(tmp_path: Path) -> None:
    assert save_steps(tmp_path, [1, 2, 3, 4, 5, 6, 7], keep_last=1, keep_every=3) == [3, 6, 7]


@pytest.mark.parametrize("damage", [truncate_largest, delete_parameters, delete_one_file, garble_meta])
def test_damaged_newest_checkpoint_is_set_aside_and_the_one_before_used(
    tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    save_steps(tmp_path, [1, 2], width=64)
    damage(newest(tmp_path))  # type: ignore[operator]
    with (
        contextlib.closing(Checkpointer(tmp_path)) as checkpointer,
        caplog.at_level(logging.ERROR),
    ):
        restored = restore(checkpointer, abstract_of(state_of(0, width=64)))
        assert restored is not None
        assert_bitwise_equal(state_in(restored), state_of(1, width=64))
        assert checkpointer.steps() == [1]
        save(checkpointer, state_of(2, width=64), {})  # the step can be saved again
        checkpointer.wait()
        assert checkpointer.steps() == [1, 2]
    assert f"checkpoint 2 in {tmp_path / 'checkpoints'} cannot be read" in caplog.text
    assert (tmp_path / "checkpoints" / "2.broken").is_dir()


def test_a_save_that_orbax_would_drop_is_an_error(tmp_path: Path) -> None:
    save_steps(tmp_path, [3, 5])
    with contextlib.closing(Checkpointer(tmp_path)) as checkpointer:
        for step, there in ((5, r"\[5\]"), (4, r"\[5\]"), (3, r"\[3, 5\]")):
            with pytest.raises(CheckpointError, match=rf"holds {there}; a checkpoint of step {step} cannot"):
                save(checkpointer, state_of(step), {})
        checkpointer.discard_from(4)
        assert checkpointer.steps() == [3]
        save(checkpointer, state_of(4), {})
        checkpointer.discard_from(4)  # itself too
        assert checkpointer.steps() == [3]
        save(checkpointer, state_of(4), {"other": True})
    assert stored_steps(tmp_path) == [3, 4]
    assert read_meta(tmp_path) == (4, {"other": True})


def test_a_step_can_break_twice(tmp_path: Path) -> None:
    save_steps(tmp_path, [1, 2])
    for _ in range(2):
        delete_parameters(newest(tmp_path))
        with contextlib.closing(Checkpointer(tmp_path)) as checkpointer:
            restored = restore(checkpointer, ABSTRACT)
            assert restored is not None
            assert restored.step == 1
            save(checkpointer, state_of(2), {})


def test_all_broken_names_them(tmp_path: Path) -> None:
    for step in save_steps(tmp_path, [1, 2]):
        delete_parameters(tmp_path / "checkpoints" / str(step))
    with (
        contextlib.closing(Checkpointer(tmp_path)) as checkpointer,
        pytest.raises(CheckpointError, match=r"none of the checkpoints \[1, 2\] in .* can be read"),
    ):
        restore(checkpointer, ABSTRACT)


def test_a_failed_restore_renames_nothing_while_no_older_checkpoint_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_steps(tmp_path, [1, 2])

    def out_of_memory(*arguments: object) -> None:
        raise RuntimeError(f"{'/a/long/path' * 99} RESOURCE_EXHAUSTED: out of memory")

    with contextlib.closing(Checkpointer(tmp_path)) as checkpointer:
        with monkeypatch.context() as patch:
            patch.setattr(checkpointer, "_restore", out_of_memory)
            with pytest.raises(
                CheckpointError, match=r"can be read \(the oldest: .{,320} RESOURCE_EXHAUSTED"
            ):
                restore(checkpointer, ABSTRACT)
        assert checkpointer.steps() == [1, 2]
        restored = restore(checkpointer, ABSTRACT)
        assert restored is not None
        assert restored.step == 2


def test_other_shapes_are_no_damage(tmp_path: Path) -> None:
    save_steps(tmp_path, [1, 2])
    wider = abstract_of(state_of(0, width=16))
    with (
        contextlib.closing(Checkpointer(tmp_path)) as checkpointer,
        pytest.raises(CheckpointError, match=r"layer\.w_DF: \(8, 8\) -> \(16, 16\)"),
    ):
        restore(checkpointer, wider)
    assert newest(tmp_path).name == "2"


def test_another_state_beside_the_parameters_is_no_damage(tmp_path: Path) -> None:
    save_steps(tmp_path, [1, 2])
    with contextlib.closing(Checkpointer(tmp_path)) as checkpointer:
        with pytest.raises(
            CheckpointError, match=r"checkpoint 2 .* arrays beside its parameters, where 1 of"
        ):
            checkpointer.restore_latest(
                ABSTRACT.params, {"momentum": jax.ShapeDtypeStruct((3,), jnp.float32)}
            )
        restored = checkpointer.restore_latest(ABSTRACT.params, None)  # the parameters alone
        assert restored is not None
        assert (restored.step, restored.rest) == (2, None)
    assert newest(tmp_path).name == "2"


def test_parameters_alone_come_back_alone(tmp_path: Path) -> None:
    with contextlib.closing(Checkpointer(tmp_path)) as checkpointer:
        checkpointer.save(1, state_of(1).params, None, {})
        checkpointer.wait()
        restored = checkpointer.restore_latest(ABSTRACT.params, None)
        assert restored is not None
        assert_bitwise_equal(restored.params, state_of(1).params)
        assert restored.rest is None
        with pytest.raises(CheckpointError, match="has 0 arrays beside its parameters"):
            restore(checkpointer, ABSTRACT)


def test_a_damaged_checkpoint_is_set_aside_where_the_parameters_alone_are_wanted(tmp_path: Path) -> None:
    save_steps(tmp_path, [1, 2], width=64)  # so wide that the largest file holds values
    truncate_largest(newest(tmp_path) / "params")
    with contextlib.closing(Checkpointer(tmp_path)) as checkpointer:
        restored = checkpointer.restore_latest(abstract_of(state_of(0, width=64)).params, None)
    assert restored is not None
    assert restored.step == 1


def test_metadata_that_is_no_json_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with contextlib.closing(Checkpointer(tmp_path)) as checkpointer:
        with pytest.raises(TypeError, match="int64 is not JSON"):
            checkpointer.save(1, state_of(1).params, None, {"step": np.int64(1)})
        checkpointer.save(1, state_of(1).params, None, {"step": 1})
    assert newest(tmp_path).name == "1"


def run_into_full_disk(workdir: Path, keep_last: int) -> None:
    checkpointer = Checkpointer(workdir, keep_last=keep_last)
    save(checkpointer, state_of(1, width=1024), {})
    checkpointer.wait()
    with largest_file(2**20):
        save(checkpointer, state_of(2, width=1024), {})
        # the write runs in the background: it fails when the next save, or the end, waits for it
        save(checkpointer, state_of(3, width=1024), {})


@pytest.mark.parametrize("keep_last", [1, 2])
def test_full_disk_names_and_keeps_the_last_good_checkpoint(tmp_path: Path, keep_last: int) -> None:
    # a process of its own, as in life: threads that still write when one has failed end with it
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process,
        pytest.raises(
            CheckpointError, match=r"checkpoint of step 2 .* failed .* last good one is step 1; free"
        ),
    ):
        process.submit(run_into_full_disk, tmp_path, keep_last).result()
    good = state_of(1, width=1024)
    with contextlib.closing(Checkpointer(tmp_path, keep_last=keep_last)) as again:
        assert again.steps() == [1]
        restored = restore(again, abstract_of(good))
        # orbax removes the half-written one in the background; a save waits for that
        save(again, state_of(2, width=1024), {})
    assert restored is not None
    assert_bitwise_equal(state_in(restored), good)
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["1", "2"][-keep_last:], "the half-written one still takes space"


def test_full_disk_at_the_first_checkpoint(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path)
    with largest_file(2**20):
        save(checkpointer, state_of(1, width=1024), {})
        with pytest.raises(CheckpointError, match="step 1 .* there is no earlier one"):
            checkpointer.wait()


def test_reading_parameters_alone(tmp_path: Path) -> None:
    save_steps(tmp_path, [1, 2])
    assert read_meta(tmp_path) == (2, {"step": 2, "name": "test"})
    assert read_meta(tmp_path, 1)[0] == 1
    assert_bitwise_equal(read_params(tmp_path, ABSTRACT.params), state_of(2).params)
    assert_bitwise_equal(read_params(tmp_path, ABSTRACT.params, 1), state_of(1).params)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 9; it has \[1, 2\]"):
        read_meta(tmp_path, 9)


def test_reading_a_damaged_checkpoint_names_it(tmp_path: Path) -> None:
    state = state_of(2, width=64)
    with contextlib.closing(Checkpointer(tmp_path)) as checkpointer:
        save(checkpointer, state, {})
    # of tiny arrays the largest file can be one that a later one replaces: these are large enough
    truncate_largest(newest(tmp_path) / "params")
    with pytest.raises(CheckpointError, match=r"checkpoint 2 in .* cannot be read"):
        read_params(tmp_path, abstract_of(state).params)
    garble_meta(newest(tmp_path))
    with pytest.raises(CheckpointError, match=r"checkpoint 2 in .* cannot be read"):
        read_meta(tmp_path)


def test_parameters_of_other_names_or_shapes_are_said_to_be_that_and_not_damaged(tmp_path: Path) -> None:
    write_params(tmp_path, {"w_DF": jnp.ones((2, 3)), "scale_D": jnp.ones(2)}, {})
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {name: jax.ShapeDtypeStruct((2, 4), jnp.float32, sharding=one) for name in ("w_DF", "w_FD")}
    with pytest.raises(CheckpointError) as caught:
        read_params(tmp_path, wanted)
    lines = ["  scale_D: (2,) -> '(absent)'", "  w_DF: (2, 3) -> (2, 4)", "  w_FD: '(absent)' -> (2, 4)"]
    assert str(caught.value).splitlines()[1:4] == lines
    assert "cannot be read" not in str(caught.value)


def test_reading_says_nothing_and_leaves_the_log_as_loud_as_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_steps(tmp_path, [1])
    before = absl.logging.get_verbosity()
    caplog.clear()
    read_meta(tmp_path)
    assert stored_steps(tmp_path) == [1]
    assert not caplog.records
    assert absl.logging.get_verbosity() == before > absl.logging.ERROR


def test_reading_nothing(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        read_meta(tmp_path)


def test_written_parameters_keep_their_dtypes(tmp_path: Path) -> None:
    params = {"w_DF": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3), "scale_D": jnp.ones(2, jnp.float32)}
    write_params(tmp_path, params, {})
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=one), params)
    assert_bitwise_equal(read_params(tmp_path, shapes), params)


def restore_on(workdir: Path, part: Partitioner) -> TrainState:
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3), num_steps=10)
    with contextlib.closing(Checkpointer(workdir)) as checkpointer:
        restored = restore(checkpointer, abstract_state(Transformer(MODEL, part), optimizer, part))
    assert restored is not None
    return state_in(restored)


def test_restores_on_another_mesh_bit_for_bit(tmp_path: Path) -> None:
    fsdp = partitioner("fsdp", fsdp=8)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3), num_steps=10)
    state = init_state(Transformer(MODEL, fsdp), optimizer, fsdp, seed=0)
    assert len(state.params["embedding_VD"].sharding.device_set) == 8
    with contextlib.closing(Checkpointer(tmp_path)) as checkpointer:
        save(checkpointer, state, {})
    for part in (partitioner("single"), partitioner("fsdp_tensor", fsdp=4, tensor=2)):
        restored = restore_on(tmp_path, part)
        assert_bitwise_equal(restored, state)
        moments = restored.opt_state[1].mu["embedding_VD"]
        for leaf in (restored.params["embedding_VD"], moments):
            assert leaf.sharding.mesh.shape == part.mesh.shape
            assert leaf.sharding.spec == part.tree(restored.params)["embedding_VD"].spec

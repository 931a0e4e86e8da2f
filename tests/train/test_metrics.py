import json

import pytest

from llama2_jax.train.metrics import LossMonitor, MetricsWriter, NonFiniteError, read_metrics


def write(workdir, steps, *, resume_step=0):
    writer = MetricsWriter(workdir, resume_step=resume_step)
    for step in steps:
        writer.write(step, {"train/loss": 10.0 + step})
    writer.close()


def steps_of(workdir):
    return [record["step"] for record in read_metrics(workdir)]


def test_lines_are_json_in_order(tmp_path):
    write(tmp_path, [0, 1, 2])
    assert read_metrics(tmp_path)[1] == {"step": 1, "train/loss": 11.0}
    assert steps_of(tmp_path) == [0, 1, 2]
    assert list((tmp_path / "tensorboard").iterdir())


def test_resuming_drops_the_lines_that_will_be_written_again(tmp_path):
    write(tmp_path, range(6))
    write(tmp_path, [4, 5], resume_step=3)
    assert steps_of(tmp_path) == [0, 1, 2, 3, 4, 5]


def test_starting_over_from_step_0_writes_step_0_once(tmp_path):
    write(tmp_path, [0, 1, 2])  # killed before the first checkpoint
    write(tmp_path, [0, 1])
    assert steps_of(tmp_path) == [0, 1]


@pytest.mark.parametrize("cut", ["", "{", '{"step": 3, "train/lo', "\x00\x00\x00"])
def test_a_cut_last_line_is_dropped(tmp_path, cut):
    write(tmp_path, [1, 2, 3])
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]) + cut)
    assert steps_of(tmp_path) == [1, 2]
    write(tmp_path, [3], resume_step=2)
    assert steps_of(tmp_path) == [1, 2, 3]


def test_a_last_line_that_lacks_only_its_newline_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}')
    write(tmp_path, [3], resume_step=2)
    assert steps_of(tmp_path) == [1, 2, 3]


def test_flushed_lines_are_visible_while_the_writer_is_open(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"train/loss": 1.0, "note": "text"})
    writer.flush()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 1,
        "train/loss": 1.0,
        "note": "text",
    }
    writer.close()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_metric_stops_with_its_name_step_and_checkpoint(bad):
    monitor = LossMonitor()
    with pytest.raises(NonFiniteError) as error:
        monitor.check(17, {"train/loss": 1.0, "train/grad_norm": bad}, last_checkpoint="step 10 in runs/x")
    assert all(
        word in str(error.value) for word in ("train/grad_norm", str(bad), "step 17", "step 10 in runs/x")
    )


def losses(monitor, values, start=1):
    for step, value in enumerate(values, start=start):
        monitor.check(step, {"train/loss": value}, last_checkpoint="none")


def test_a_spike_is_reported_with_step_and_loss():
    monitor = LossMonitor(sigmas=6.0)
    losses(monitor, [2.0, 2.2] * 15)  # mean 2.1, standard deviation 0.1
    losses(monitor, [2.71], start=31)
    assert monitor.spikes == [(31, 2.71)]


def test_a_rise_within_the_threshold_is_no_spike():
    monitor = LossMonitor(sigmas=6.0)
    losses(monitor, [2.0, 2.2] * 15 + [2.69])
    assert monitor.spikes == []


def test_a_falling_loss_and_the_first_steps_are_no_spikes():
    monitor = LossMonitor()
    losses(monitor, [1.0] * 19 + [50.0])
    assert monitor.spikes == []
    monitor = LossMonitor()
    losses(monitor, [10.0 - 0.01 * i for i in range(300)])
    assert monitor.spikes == []


def test_a_loss_that_is_constant_but_for_rounding_has_no_spike():
    monitor = LossMonitor()
    losses(monitor, [2.0] * 39 + [2.0 + 1e-9])
    assert monitor.spikes == []


def test_old_losses_leave_the_window():
    monitor = LossMonitor(window=30)
    losses(monitor, [9.0, 1.0] * 50 + [1.0] * 30)
    losses(monitor, [1.1], start=131)
    assert monitor.spikes == [(131, 1.1)]

import pytest
from lm_eval.tasks import TaskManager

from llama2_jax.evals.benchmarks import BENCHMARKS, CODE, by_size, group_means
from llama2_jax.model.config import PAPER_SIZES

TABLE_3 = {  # the paper's own means; Math of 7B and 13B is GSM8K alone (D12)
    "7b": {
        "Code": 16.8,
        "Commonsense": 63.9,
        "World knowledge": 48.9,
        "MMLU": 45.3,
        "BBH": 32.6,
        "AGI Eval": 29.3,
    },
    "13b": {
        "Code": 24.5,
        "Commonsense": 66.9,
        "World knowledge": 55.4,
        "MMLU": 54.8,
        "BBH": 39.4,
        "AGI Eval": 39.1,
    },
    "34b": {"Code": 27.8, "Commonsense": 69.9, "World knowledge": 58.7, "Math": 24.2},
    "70b": {"Code": 37.5, "Commonsense": 71.9, "World knowledge": 63.6, "Math": 35.2},
}


@pytest.mark.parametrize("size", PAPER_SIZES)
def test_published_results_give_the_groups_of_table_3(size):
    values = {b.name: b.published[PAPER_SIZES.index(size)] for b in (*CODE, *BENCHMARKS)}
    found = group_means(values)
    assert "Reading comprehension" not in found  # SQuAD and QuAC are missing
    for group, published in TABLE_3[size].items():
        assert abs(found[group] - published) <= 0.05 + 1e-9


def test_a_group_that_lacks_a_benchmark_has_no_mean():
    values = {benchmark.name: 50.0 for benchmark in BENCHMARKS if benchmark.name != "PIQA"}
    assert set(group_means(values)) == {"World knowledge", "Math", "MMLU", "BBH", "AGI Eval"}


def test_several_tasks_are_weighted_by_their_questions():
    assert by_size([0.5, 1.0], [300, 100]) == 0.625


def test_every_task_is_one_that_lm_eval_has():
    known = TaskManager().all_tasks
    assert not [task for b in (*CODE, *BENCHMARKS) for task in b.tasks if task not in known]

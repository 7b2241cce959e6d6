import pytest

from cluster.node import Node
from orchestrator.config.experiment import ClusterConfig
from orchestrator.execution.plan import Plan, PlanError, make_plan


def plan(config: dict, nodes: list[Node], *, streaming: bool = False, asked: int | None = None) -> Plan:
    return make_plan(ClusterConfig(**config), nodes, streaming=streaming, num_trials=100, max_concurrent=asked)


LAPTOP = [Node(4, 0, 10**9)]
GPU_NODES = [Node(16, 4, 10**9), Node(16, 4, 10**9)]


def test_one_process_trials_fill_the_cores_and_the_reason_is_told() -> None:
    chosen = plan({}, LAPTOP)
    assert (chosen.max_concurrent, chosen.use_gpu) == (4, False)
    assert "4 CPUs" in chosen.reasons[0] and "cluster.workers=0" in chosen.reasons[1]


def test_a_stream_needs_a_cpu_of_its_own() -> None:
    assert plan({}, LAPTOP, streaming=True).max_concurrent == 2
    assert plan({"workers": 1}, LAPTOP, streaming=True).max_concurrent == 1  # 2.01 CPUs each


def test_gpus_decide_where_there_are_some() -> None:
    assert plan({}, GPU_NODES).max_concurrent == 8
    assert plan({"workers": 4}, GPU_NODES).max_concurrent == 2
    assert plan({"gpus_per_worker": 0.5}, GPU_NODES).max_concurrent == 16
    assert plan({"use_gpu": False}, GPU_NODES).max_concurrent == 32


def test_a_worker_does_not_straddle_two_machines() -> None:
    with pytest.raises(PlanError, match="one trial must fit"):
        plan({"cpus_per_worker": 3}, [Node(2, 0, 1), Node(2, 0, 1)])


def test_what_would_starve_is_refused_with_the_arithmetic() -> None:
    # The naive set-up: two trials of one worker, each reading a stream, on 2 CPUs.
    with pytest.raises(PlanError, match=r"needs 2\.01 CPUs \(1 x 1 for training \+ 1 for reading .* has 2 CPUs"):
        plan({"workers": 1}, [Node(2, 0, 10**9)], streaming=True)
    with pytest.raises(PlanError, match=r"max_concurrent=2 .* 1 fit\. .* Set sweep.max_concurrent=1"):
        plan({"workers": 1}, LAPTOP, streaming=True, asked=2)


def test_no_more_trials_than_asked_for() -> None:
    assert plan({}, LAPTOP, asked=3).max_concurrent == 3
    assert make_plan(ClusterConfig(), LAPTOP, streaming=False, num_trials=2, max_concurrent=None).max_concurrent == 2


def test_two_workers_of_a_trial_do_not_share_a_gpu() -> None:
    with pytest.raises(PlanError, match="NCCL refuses two ranks on one"):
        plan({"workers": 2, "gpus_per_worker": 0.5}, GPU_NODES)

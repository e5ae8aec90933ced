"""How workers find each other, and what they tell."""

import errno
import os

import pytest
import tensorflow as tf
from samples import ALONE, together

from train_loop.errors import UserError
from train_loop.training.strategies import find_cluster
from train_loop.training.workers import (
    SharedError,
    Workers,
    _place,
    unshared,
)

resolvers = tf.distribute.cluster_resolver


def cluster(task_type, task_id, **jobs):
    return resolvers.SimpleClusterResolver(
        tf.train.ClusterSpec(jobs), task_type=task_type, task_id=task_id
    )


@pytest.mark.parametrize(
    ("resolver", "place"),
    [
        (None, (0, 1)),
        (cluster("worker", 1, worker=["a:1", "b:1", "c:1"]), (1, 3)),
        (cluster("chief", 0, chief=["a:1"], worker=["b:1"]), (0, 2)),
        (cluster("worker", 0, chief=["a:1"], worker=["b:1"]), (1, 2)),
    ],
)
def test_first_worker_is_the_chief(resolver, place):
    assert _place(resolver) == place


def test_lost_connection_is_a_lost_worker_only_with_several():
    lost = tf.errors.UnavailableError(None, None, "no route to gs://images")
    with (
        pytest.raises(tf.errors.UnavailableError),
        ALONE.explaining_lost_workers(),
    ):
        raise lost

    def refusal(workers):
        with (
            pytest.raises(UserError) as error,
            workers.explaining_lost_workers(),
        ):
            raise lost
        return str(error.value)

    for number, line in enumerate(together(refusal)):
        assert line.startswith(
            f"worker {number} of 2: another worker has stopped"
        )
        assert "(no route to gs://images)" in line


def fail_on(number, workers, error=None):
    if workers.number == number:
        raise error or ValueError(number)


@pytest.mark.parametrize("error", [ValueError, OSError(errno.ENOSPC, "full")])
def test_error_of_one_worker_reaches_all(error):
    def failures(workers):
        with workers.agreeing():
            pass
        with pytest.raises(SharedError) as failure, workers.agreeing():
            fail_on(1, workers, error)
        # All are at the same place.
        workers.barrier()
        return failure.value

    other, own = together(failures)
    is_full = isinstance(error, OSError)
    for failure in (other, own):
        assert failure.is_full_disk == failure.is_shortage == is_full
    assert other.error is None
    line = "worker 0 of 2: another worker failed"
    with pytest.raises(UserError, match=line), unshared():
        raise other
    with pytest.raises(type(own.error)), unshared():
        raise own


def test_full_disk_beside_another_error_is_not_full_disk():
    def failures(workers):
        full = OSError(errno.ENOSPC, "full")
        with pytest.raises(SharedError) as failure, workers.agreeing():
            raise full if workers.is_chief else ValueError
        return failure.value

    for failure in together(failures):
        assert failure.is_shortage
        assert not failure.is_full_disk


def test_failed_worker_takes_part_in_the_next_agreement():
    @unshared()
    def work(workers):
        with workers.agreeing():
            fail_on(0, workers)
            for _ in range(3):
                workers.barrier()

    def fail(workers):
        with pytest.raises((ValueError, UserError)):
            work(workers)
        workers.barrier()

    together(fail)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_error_in_turn_ends_the_others(number):
    def turn(workers):
        with workers.in_turn():
            fail_on(number, workers)

    def outcomes(workers):
        with pytest.raises((ValueError, UserError)) as error:
            turn(workers)
        workers.barrier()
        return type(error.value)

    expected = [UserError] * 3
    expected[number] = ValueError
    assert together(outcomes, 3) == expected


def test_single_worker_communicates_with_itself(two_replicas):
    workers = Workers(two_replicas)
    assert workers.is_chief
    assert workers.sums(2, True, 0.5) == [2.0, 1.0, 0.5]
    assert workers.from_chief(7) == 7
    context = workers.context
    assert (context.num_input_pipelines, context.input_pipeline_id) == (1, 0)
    assert context.num_replicas_in_sync == 2


def place_of(resolver):
    """Returns the addresses that a resolver has found, and this one's."""
    assert resolver.task_type == "worker"
    addresses = resolver.cluster_spec().as_dict()["worker"]
    return addresses, addresses[resolver.task_id]


@pytest.mark.parametrize(
    ("node", "place", "mine"),
    [
        (0, 0, "n9:8470"),
        (0, 1, "n9:8471"),
        (1, 0, "n10:8470"),
        (2, 0, "m:8470"),
    ],
)
def test_slurm_tasks_are_found_by_their_nodes(
    node, place, mine, tmp_path, monkeypatch
):
    # Output of a real scontrol for n[9-10],m.
    program = tmp_path / "scontrol"
    program.write_text(
        '#!/bin/sh\n[ "$*" = "show hostnames n[9-10],m" ] || exit 1\n'
        "printf 'n9\\nn10\\nm\\n'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    # Order of --distribution=cyclic: one task per node, then the others.
    number = {(0, 0): 0, (1, 0): 1, (2, 0): 2, (0, 1): 3}[node, place]
    monkeypatch.setenv("SLURM_PROCID", str(number))
    monkeypatch.setenv("SLURM_NODEID", str(node))
    monkeypatch.setenv("SLURM_LOCALID", str(place))
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n[9-10],m")
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "2,1(x2)")
    addresses, found = place_of(find_cluster("slurm"))
    assert addresses == ["n9:8470", "n9:8471", "n10:8470", "m:8470"]
    assert found == mine


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tf_config", "requires the environment variable TF_CONFIG"),
        ("slurm", "Slurm not found"),
        ("kubernetes:job-name=resnet:2", "must be tf_config .* set TF_CONFIG"),
        ("gce:project/zone/group", "Pass --cluster=tf_config"),
        ("slurn", "Did you mean slurm"),
    ],
)
def test_missing_cluster_is_one_clear_line(text, message, monkeypatch):
    for name in ("TF_CONFIG", "SLURM_NODEID", "SLURM_STEP_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=message):
        find_cluster(text)


@pytest.mark.parametrize(
    "value",
    [
        "{oops",
        "3",
        '{"cluster": 3}',
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {"worker": ["a:1"]}, "task": 3}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "w", "index": 0}}',
        '{"cluster": {"w": ["a:1"]}, "task": {"type": "w", "index": 1}}',
    ],
)
def test_invalid_tf_config_is_one_clear_line(value, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", value)
    with pytest.raises(UserError, match="must be JSON with cluster") as caught:
        find_cluster("tf_config")
    assert str(caught.value).startswith(f"TF_CONFIG={value}: ")
    assert "\n" not in str(caught.value)

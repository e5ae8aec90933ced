"""How workers find each other, and what they tell."""

import socket

import pytest
import tensorflow as tf

from train_loop.errors import UserError
from train_loop.training.clusters import find_cluster, placed
from train_loop.training.workers import Workers, _place

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


def test_one_worker_tells_itself(two_replicas):
    workers = Workers(two_replicas)
    assert workers.is_chief
    assert workers.sums(2, True, 0.5) == [2.0, 1.0, 0.5]
    assert workers.of_chief(7) == 7
    context = workers.context
    assert (context.num_input_pipelines, context.input_pipeline_id) == (1, 0)
    assert context.num_replicas_in_sync == 2


def test_machine_finds_itself_among_the_workers():
    own = socket.gethostname()
    resolver = placed(cluster("", 0, worker=["other:8470", f"{own}:8470"]))
    assert (resolver.task_type, resolver.task_id) == ("worker", 1)
    with pytest.raises(UserError, match="not one of the workers .* other"):
        placed(cluster("", 0, worker=["other:8470"]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tf_config", "TF_CONFIG is not set"),
        ("slurm", "found no Slurm"),
        ("kubernetes:job-name=resnet", "pip install kubernetes"),
        ("gce:project/zone/group", "pip install google-api-python-client"),
        ("slurn", "did you mean slurm"),
    ],
)
def test_cluster_that_is_not_there_is_one_clear_line(
    text, message, monkeypatch
):
    for name in ("TF_CONFIG", "SLURM_PROCID", "SLURM_STEP_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=message):
        find_cluster(text)

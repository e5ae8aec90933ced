"""Clusters: how a worker finds the others."""

import os
import re
import subprocess

import tensorflow as tf

from train_loop.errors import UserError, check_choice

PORT = 8470


def find_cluster(name):
    """Returns the resolver that `--cluster` names."""
    if name.startswith(("kubernetes", "gce")):
        raise UserError(
            f"--cluster={name}: must be tf_config or slurm. Set TF_CONFIG, as "
            "an indexed Job of Kubernetes can (see README, Several machines), "
            "and pass --cluster=tf_config."
        )
    check_choice("--cluster", name, CLUSTERS)
    return CLUSTERS[name]()


def tf_config():
    """Reads the environment variable TF_CONFIG."""
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    try:
        found = resolver.cluster_spec().as_dict()
        if found:
            # It needs the address of this very worker.
            found[resolver.task_type][resolver.task_id]
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"TF_CONFIG={' '.join(os.environ['TF_CONFIG'].split())}: must be "
            "JSON with cluster, lists of addresses by type, and task, the type "
            f"and index of this worker ({reason}). Set it so, or start workers "
            "on this machine with python -m train_loop.launch."
        ) from error
    if not found:
        raise UserError(
            "--strategy=multi_worker finds no other workers: the environment "
            "variable TF_CONFIG is not set. python -m train_loop.launch "
            "--workers=2 -- ... starts some on this machine; --cluster=slurm "
            "asks Slurm"
        )
    return resolver


def slurm():
    """Asks Slurm for the tasks of this step; each is a worker.

    GPUs are left to Slurm: several tasks on a node need --gpus-per-task.
    TensorFlow's own resolver needs nvidia-smi, and sorts hosts by their text
    (n10 before n9), while Slurm counts tasks in its own order.
    """
    try:
        node = int(os.environ["SLURM_NODEID"])
        place_on_node = int(os.environ["SLURM_LOCALID"])
        nodes = os.environ["SLURM_STEP_NODELIST"]
        tasks = os.environ["SLURM_STEP_TASKS_PER_NODE"]
        hosts = subprocess.run(
            ["scontrol", "show", "hostnames", nodes],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout.split()
    except (KeyError, OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"--cluster=slurm found no Slurm ({error}); start with srun"
        ) from error
    counts = []
    # Such as 2(x3),1: three nodes with two tasks, and one with one.
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks):
        counts += [int(count)] * int(times or 1)
    return tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(
            {
                "worker": [
                    f"{host}:{PORT + place}"
                    for host, count in zip(hosts, counts, strict=True)
                    for place in range(count)
                ]
            }
        ),
        task_type="worker",
        # SLURM_PROCID counts so only with --distribution=block.
        task_id=sum(counts[:node]) + place_on_node,
        # It does not look itself, and must not begin to compute here.
        num_accelerators={"GPU": len(tf.config.list_physical_devices("GPU"))},
        rpc_layer="grpc",
    )


# Name -> function that returns a resolver.
CLUSTERS = {"tf_config": tf_config, "slurm": slurm}

"""Strategies: the devices that a run computes on."""

import contextlib
import os
import re
import subprocess

import tensorflow as tf

from train_loop.errors import UserError, check_choice

# TensorFlow's default is 1: the next batch is copied to a device only when the
# previous one has been used.
PREFETCH = tf.distribute.InputOptions(experimental_per_replica_buffer_size=2)
PORT = 8470


def mirrored(_=None):
    """Returns a strategy with a replica on every GPU, or else every CPU."""
    if tf.config.list_logical_devices("GPU"):
        with _without_tf_config():
            return tf.distribute.MirroredStrategy()
    devices = [
        device.name.removeprefix("/device:")
        for device in tf.config.list_logical_devices("CPU")
    ]
    # The default collectives of two strategies in one process conflict on CPUs
    # and crash.
    with _without_tf_config():
        return tf.distribute.MirroredStrategy(
            devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
        )


def one_device(_):
    """Returns a strategy for the first GPU, or else for the first CPU."""
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    return tf.distribute.OneDeviceStrategy(f"/{kind}:0")


def multi_worker(cluster):
    """Returns a strategy for all GPUs, or else CPUs, of several machines.

    Call it before TensorFlow computes anything.

    Args:
      cluster: see `find_cluster`.
    """
    strategy = tf.distribute.MultiWorkerMirroredStrategy(
        cluster_resolver=find_cluster(cluster)
    )
    # All workers have the same number of full batches. Otherwise they would
    # exchange a message per batch, and wait there for a worker that cannot read
    # its own.
    strategy.extended.experimental_enable_get_next_as_optional = False
    return strategy


def tpu(_):
    """Returns a strategy for the TPU that TensorFlow finds by itself."""
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except ValueError as error:
        raise UserError(
            f"--strategy=tpu: TPU not found ({' '.join(str(error).split())}). "
            "Use --strategy=mirrored for CPUs and GPUs."
        ) from error
    return tf.distribute.TPUStrategy(resolver)


# Name -> (cluster) -> strategy.
STRATEGIES = {
    "mirrored": mirrored,
    "one_device": one_device,
    "multi_worker": multi_worker,
    "tpu": tpu,
}


def distribute(strategy, make_batches):
    """Returns batches, of which two are prefetched to each device.

    Args:
      strategy: a `tf.distribute.Strategy`.
      make_batches: maps a `tf.distribute.InputContext` to a dataset.
    """
    return strategy.distribute_datasets_from_function(make_batches, PREFETCH)


def split_cpu(num_devices):
    """Splits the CPU into logical devices, before TensorFlow starts.

    To try several replicas on a machine without GPUs.

    Args:
      num_devices: number of logical devices.

    Raises:
      UserError: TensorFlow has started already, with another number.
    """
    try:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * num_devices,
        )
    except RuntimeError as error:
        found = len(tf.config.list_logical_devices("CPU"))
        if found != num_devices:
            raise UserError(
                f"--virtual_devices={num_devices}: this process has started "
                f"with {found} already. Start another process."
            ) from error


@contextlib.contextmanager
def _without_tf_config():
    """Hides TF_CONFIG, which TensorFlow parses even if unused."""
    value = os.environ.pop("TF_CONFIG", None)
    try:
        yield
    finally:
        if value is not None:
            os.environ["TF_CONFIG"] = value


def find_cluster(name):
    """Returns the cluster resolver of `--cluster`."""
    if name.startswith(("kubernetes", "gce")):
        raise UserError(
            f"--cluster={name}: must be tf_config or slurm. On Kubernetes, set "
            "TF_CONFIG in an indexed Job (docs/guides/distributed.md). Pass "
            "--cluster=tf_config."
        )
    check_choice("--cluster", name, CLUSTERS)
    return CLUSTERS[name]()


def tf_config():
    """Reads the environment variable TF_CONFIG."""
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    try:
        found = resolver.cluster_spec().as_dict()
        if found:
            # It needs the address of this worker.
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
            "--strategy=multi_worker: requires the environment variable "
            "TF_CONFIG, or --cluster=slurm. Set one of them, or start workers "
            "on this machine: python -m train_loop.launch --workers=2 -- ..."
        )
    return resolver


def slurm():
    """Returns a resolver for the tasks of a Slurm step; each is a worker.

    Slurm assigns the GPUs: several tasks on a node need --gpus-per-task.
    TensorFlow's own resolver requires nvidia-smi, and sorts hosts as text (n10
    before n9), unlike Slurm.
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
            f"--cluster=slurm: Slurm not found ({error}). Start with srun."
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
        # SLURM_PROCID is the same only with --distribution=block.
        task_id=sum(counts[:node]) + place_on_node,
        # The resolver does not detect them, and must not initialize them here.
        num_accelerators={"GPU": len(tf.config.list_physical_devices("GPU"))},
        rpc_layer="grpc",
    )


# Name -> function that returns a resolver.
CLUSTERS = {"tf_config": tf_config, "slurm": slurm}

"""Strategies: the devices that a run computes on."""

import contextlib
import os

import tensorflow as tf

from train_loop.errors import UserError
from train_loop.training.clusters import find_cluster

# TensorFlow's default is 1: the next batch is copied to a device only when that
# one has been taken.
PREFETCH = tf.distribute.InputOptions(experimental_per_replica_buffer_size=2)


def split_cpu(num_devices):
    """Makes TensorFlow see one CPU as several; before anything else runs.

    It is how replicas are tried on a machine without GPUs.

    Args:
      num_devices: how many.

    Raises:
      UserError: TensorFlow has begun already, with another number of them.
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
                f"--virtual_devices={num_devices} cannot be had: this process "
                f"has begun with {found}; start another process"
            ) from error


def one_device(_):
    """Returns a strategy for the first GPU, or else for the first CPU."""
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    return tf.distribute.OneDeviceStrategy(f"/{kind}:0")


def mirrored(_=None):
    """Returns a strategy with a replica on every GPU, or else every CPU."""
    if tf.config.list_logical_devices("GPU"):
        with _without_tf_config():
            return tf.distribute.MirroredStrategy()
    devices = [
        device.name.removeprefix("/device:")
        for device in tf.config.list_logical_devices("CPU")
    ]
    # The default collectives of two strategies in one process get into each
    # other's way on CPUs and crash.
    with _without_tf_config():
        return tf.distribute.MirroredStrategy(
            devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
        )


@contextlib.contextmanager
def _without_tf_config():
    """Hides TF_CONFIG, which is parsed even where it is not used."""
    value = os.environ.pop("TF_CONFIG", None)
    try:
        yield
    finally:
        if value is not None:
            os.environ["TF_CONFIG"] = value


def multi_worker(cluster):
    """Returns a strategy for all GPUs, or else CPUs, of several machines.

    Before TensorFlow computes anything else.

    Args:
      cluster: see `find_cluster`.
    """
    strategy = tf.distribute.MultiWorkerMirroredStrategy(
        cluster_resolver=find_cluster(cluster)
    )
    # All have as many batches, and these are full. Otherwise the
    # workers would exchange a message per batch, and wait there for one that
    # cannot read its own.
    strategy.extended.experimental_enable_get_next_as_optional = False
    return strategy


def tpu(_):
    """Returns a strategy for the TPU that TensorFlow finds by itself."""
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except ValueError as error:
        raise UserError(
            f"--strategy=tpu found no TPU ({' '.join(str(error).split())}); "
            "take --strategy=mirrored for CPUs and GPUs"
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def distribute(strategy, make_batches):
    """Returns batches, of which two wait on each device of a strategy.

    Args:
      strategy: a `tf.distribute.Strategy`.
      make_batches: maps a `tf.distribute.InputContext` to a dataset.
    """
    return strategy.distribute_datasets_from_function(make_batches, PREFETCH)


# Name -> (cluster) -> strategy.
STRATEGIES = {
    "mirrored": mirrored,
    "one_device": one_device,
    "multi_worker": multi_worker,
    "tpu": tpu,
}

"""Clusters: how a worker finds the others.

As TensorFlow's own resolvers do. A row of `CLUSTERS` takes what stands behind
the name in `--cluster=NAME:VALUE`, and returns a resolver.
"""

import socket

import tensorflow as tf

from train_loop.errors import UserError, check_choice

PORT = 8470


def tf_config(_):
    """Reads the environment variable TF_CONFIG."""
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if not resolver.cluster_spec().as_dict():
        raise UserError(
            "--strategy=multi_worker finds no other workers: the environment "
            "variable TF_CONFIG is not set. python -m train_loop.launch "
            "--workers=2 -- ... starts some on this machine; --cluster=slurm "
            "asks Slurm"
        )
    return resolver


def slurm(_):
    """Asks Slurm's environment variables; each task is a worker."""
    try:
        return tf.distribute.cluster_resolver.SlurmClusterResolver(
            port_base=PORT
        )
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"--cluster=slurm found no Slurm ({error}); start with srun"
        ) from error


def kubernetes(selector):
    """Asks Kubernetes for the running pods with a label, NAME=VALUE.

    With the package kubernetes, and the right to list pods.
    """
    try:
        resolver = tf.distribute.cluster_resolver.KubernetesClusterResolver(
            {"worker": [selector]}, tf_server_port=PORT
        )
    except ImportError as error:
        raise UserError(
            "--cluster=kubernetes needs a package: pip install kubernetes"
        ) from error
    return placed(resolver)


def gce(group):
    """Asks Google Compute Engine for an instance group, PROJECT/ZONE/NAME."""
    project, _, rest = group.partition("/")
    zone, _, name = rest.partition("/")
    try:
        resolver = tf.distribute.cluster_resolver.GCEClusterResolver(
            project, zone, name, PORT
        )
    except ImportError as error:
        raise UserError(
            "--cluster=gce needs a package: pip install "
            "google-api-python-client"
        ) from error
    return placed(resolver)


def placed(resolver):
    """Tells a resolver which of its workers this machine is.

    Those of machines that a service lists do not know.
    """
    hosts = [
        address.rpartition(":")[0]
        for address in resolver.cluster_spec().as_dict().get("worker", ())
    ]
    name = socket.gethostname()
    mine = {name, socket.getfqdn(), *socket.gethostbyname_ex(name)[2]}
    places = [place for place, host in enumerate(hosts) if host in mine]
    if len(places) != 1:
        raise UserError(
            f"this machine ({', '.join(sorted(mine))}) is not one of the "
            f"workers that were found: {', '.join(hosts) or 'none'}"
        )
    resolver.task_type, resolver.task_id = "worker", places[0]
    return resolver


# Name -> (what stands behind it) -> resolver.
CLUSTERS = {
    "tf_config": tf_config,
    "slurm": slurm,
    "kubernetes": kubernetes,
    "gce": gce,
}


def find_cluster(text):
    """Returns the resolver that `--cluster` names."""
    name, _, value = text.partition(":")
    check_choice("--cluster", name, CLUSTERS)
    return CLUSTERS[name](value)

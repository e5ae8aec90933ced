"""Clusters: how a worker finds the others.

A row of `CLUSTERS` takes what stands behind the name in `--cluster=NAME:VALUE`,
and returns a resolver. TensorFlow's own for Slurm, Kubernetes and Google
Compute Engine are not used: the first sorts hosts by their text (n10 before n9)
while Slurm counts tasks in its own order, and needs nvidia-smi; the second asks
for the addresses of nodes, not of pods, with a file that no pod has; the third
names a parameter that its service does not know.
"""

import os
import pathlib
import re
import socket
import subprocess
import time

import tensorflow as tf

from train_loop.errors import UserError, check_choice

PORT = 8470
# Where a pod finds the namespace that it is in.
NAMESPACE = pathlib.Path(
    "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
)
SECONDS_TO_START = 600
SECONDS_TO_ASK_AGAIN = 2


def tf_config(_):
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


def slurm(_):
    """Asks Slurm for the tasks of this step; each is a worker.

    GPUs are left to Slurm: several tasks on a node need --gpus-per-task.
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
    return resolver_of(
        [
            f"{host}:{PORT + place}"
            for host, count in zip(hosts, counts, strict=True)
            for place in range(count)
        ],
        # SLURM_PROCID counts so only with --distribution=block.
        sum(counts[:node]) + place_on_node,
    )


def kubernetes(value):
    """Asks Kubernetes for pods with a label, NAME=VALUE:HOW_MANY.

    With the package kubernetes, and the right to list the pods of the
    namespace that this one is in. Waits until all of them run.
    """
    label, _, count = value.rpartition(":")
    if "=" not in label or not count.isdigit():
        raise UserError(
            f"--cluster=kubernetes:{value} is not possible; it takes a label "
            "of the pods and how many they are, such as "
            "kubernetes:job-name=resnet:2"
        )
    try:
        from kubernetes import client, config
        from urllib3.exceptions import HTTPError
    except ImportError as error:
        raise UserError(
            "--cluster=kubernetes needs a package: pip install kubernetes"
        ) from error
    try:
        config.load_incluster_config()
        service, namespace = client.CoreV1Api(), NAMESPACE.read_text().strip()
    except (config.ConfigException, OSError) as error:
        raise UserError(
            f"--cluster=kubernetes:{value} is for pods, and this is none "
            f"({error})"
        ) from error
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            pods = service.list_namespaced_pod(namespace, label_selector=label)
        except client.ApiException as error:
            if error.status == 403:
                raise UserError(
                    f"--cluster=kubernetes:{value}: this pod may not list pods "
                    f"({error.reason}); give its service account that right"
                ) from error
            # Its whole text has all headers of the answer.
            reason = f"{error.status} {error.reason}"
            raise no_answer(f"kubernetes:{value}", reason) from error
        except HTTPError as error:
            raise no_answer(f"kubernetes:{value}", error) from error
        addresses = [
            pod.status.pod_ip
            for pod in pods.items
            # One that is being deleted still has the phase Running.
            if pod.status.phase == "Running"
            and pod.metadata.deletion_timestamp is None
        ]
        if len(addresses) == int(count):
            return placed(addresses)
        if time.monotonic() > deadline:
            raise UserError(
                f"--cluster=kubernetes:{value} found {len(addresses)} pods "
                f"that run, in {SECONDS_TO_START} s; there must be {count}"
            )
        time.sleep(SECONDS_TO_ASK_AGAIN)


def gce(group):
    """Asks Google Compute Engine for an instance group, PROJECT/ZONE/NAME.

    With the package google-api-python-client.
    """
    parts = group.split("/")
    if len(parts) != 3 or not all(parts):
        raise UserError(
            f"--cluster=gce:{group} is not possible; it takes an instance "
            "group as PROJECT/ZONE/NAME, such as gce:mine/us-east1-b/resnet"
        )
    try:
        from google.auth.exceptions import GoogleAuthError
        from googleapiclient import discovery
        from googleapiclient.errors import Error
        from httplib2 import HttpLib2Error
    except ImportError as error:
        raise UserError(
            "--cluster=gce needs a package: pip install "
            "google-api-python-client"
        ) from error
    try:
        groups = discovery.build("compute", "v1").instanceGroups()
        hosts = instances_of(groups, *parts)
    except (Error, GoogleAuthError, HttpLib2Error, OSError) as error:
        raise no_answer(f"gce:{group}", error) from error
    return placed(hosts)


def instances_of(groups, project, zone, name):
    """Returns the names of the instances of a group that run."""
    request = groups.listInstances(
        project=project,
        zone=zone,
        instanceGroup=name,
        body={"instanceState": "RUNNING"},
    )
    hosts = []
    while request is not None:
        answer = request.execute()
        # A URL, whose end is the name that the others know it by.
        hosts += [
            item["instance"].rpartition("/")[2]
            for item in answer.get("items", ())
        ]
        request = groups.listInstances_next(request, answer)
    return hosts


def no_answer(cluster, reason):
    """Returns what to raise where those to be asked do not answer."""
    reason = " ".join(str(reason).split())
    return UserError(
        f"--cluster={cluster} could not ask for the other workers "
        f"({reason}); mend that, or name them in TF_CONFIG"
    )


def placed(hosts):
    """Returns the resolver of a worker on each host, of which this is one."""
    hosts = sorted(hosts)
    name = socket.gethostname()
    short, _, _ = name.partition(".")
    try:
        addresses = socket.gethostbyname_ex(name)[2]
    except OSError as error:
        raise UserError(
            f"this machine does not find its own address: {name} is not known "
            f"({error}); a line in /etc/hosts makes it known"
        ) from error
    mine = {name, short, socket.getfqdn(), *addresses}
    places = [place for place, host in enumerate(hosts) if host in mine]
    if len(places) != 1:
        raise UserError(
            f"this machine ({', '.join(sorted(mine))}) is not one of the "
            f"workers that were found: {', '.join(hosts) or 'none'}"
        )
    return resolver_of([f"{host}:{PORT}" for host in hosts], places[0])


def resolver_of(addresses, number):
    """Returns the resolver of one of several workers."""
    return tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": addresses}),
        task_type="worker",
        task_id=number,
        # It does not look itself, and must not begin to compute here.
        num_accelerators={"GPU": len(tf.config.list_physical_devices("GPU"))},
        rpc_layer="grpc",
    )


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

"""Jobs on Kubernetes: a JobSet each, as GKE and xpk run them.

A host of the slice is a pod of one indexed Job. A pod that ends with 75, or that the cluster takes away, fails its
Job by a rule (PodFailurePolicy), and the JobSet then starts all pods again without counting it; any other failure
counts against `restarts`. Words that reach a container have `$` doubled, since Kubernetes reads `$(NAME)` in them.

Sources: https://jobset.sigs.k8s.io/docs/tasks/failure_policy and .../tpu_multislice (exclusive placement),
https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-failure-policy,
https://cloud.google.com/kubernetes-engine/docs/how-to/cloud-storage-fuse-csi-driver-ephemeral (buckets),
https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus, and https://github.com/AI-Hypercomputer/xpk.
"""

import json
import re
from functools import partial
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from diffusion_jax.launch.action import Run
from diffusion_jax.launch.backend import Backend
from diffusion_jax.launch.distributed import VARIABLE, described
from diffusion_jax.launch.job import Job, check_image, check_label, command
from diffusion_jax.launch.topology import Topology, read_topology
from diffusion_jax.naming import lookup
from diffusion_jax.training.loop import PREEMPTED

PORT = 8476
SAVING = 120  # seconds that a pod has to save in


class Volume(NamedTuple):
    """What is mounted, by which name, and where."""

    kind: str
    name: str
    path: PurePosixPath


class Pods(NamedTuple):
    """What every pod of a job is like, and how many there are."""

    image: str
    hosts: int
    limits: dict[str, int]
    nodes: dict[str, str]
    exclusive: bool
    volume: Volume
    queue: str
    account: str
    restarts: int


def kubernetes(
    *,
    image: str,
    volume: str,
    topology: str = "",
    gpus: int = 0,
    hosts: int = 1,
    spot: bool = False,
    namespace: str = "",
    queue: str = "",
    account: str = "",
    restarts: int = 3,
) -> Backend:
    """Run each job as a JobSet; see docs/launching.md for the options."""
    if not image:
        raise ValueError("--image is empty; it must name an image that has this code, like registry/project/name:tag.")
    if topology and (gpus or hosts != 1):
        raise ValueError("--topology says the hosts and chips of a slice of TPUs; leave --gpus and --hosts out.")
    if gpus < 0 or hosts < 1 or restarts < 0:
        raise ValueError(f"--gpus is {gpus}, --hosts {hosts} and --restarts {restarts}; the least are 0, 1 and 0.")
    slice_ = read_topology(topology) if topology else None
    pods = Pods(
        image=check_image(image),
        hosts=slice_.hosts if slice_ else hosts,
        limits=_limits(slice_, gpus),
        nodes={**_nodes(slice_), **({"cloud.google.com/gke-spot": "true"} if spot else {})},
        exclusive=bool(slice_),
        volume=_read_volume(volume),
        queue=queue and check_label(queue, "--queue"),
        account=account and check_label(account, "--account"),
        restarts=restarts,
    )
    where = (f"--namespace={check_label(namespace, '--namespace')}",) if namespace else ()
    every = partial(_every, where)
    return Backend(
        start=lambda launch: [
            Run(("kubectl", "apply", *where, "--filename=-"), json.dumps(manifest(pods, name, job), indent=2) + "\n")
            for name, job in [(launch.name_of(job), job) for job in launch.jobs]
        ],
        status=every(lambda name: ("get", "jobsets,pods", f"--selector={LABEL}={name}")),
        logs=every(
            lambda name: ("logs", f"--selector={LABEL}={name}", "--prefix", "--tail=20", "--max-log-requests=64")
        ),
        stop=every(lambda name: ("delete", "jobset", name)),
        refuse=partial(_refuse, pods),
        devices=lambda: (
            (slice_.chips, slice_.chips // slice_.hosts) if slice_ else (hosts * max(gpus, 1), max(gpus, 1))
        ),
        topology=topology,
        note="the image must have this code in its working folder, and the volume must be one that all pods share",
    )


def manifest(pods: Pods, name: str, job: Job) -> dict[str, Any]:
    """Return the JobSet of a job, as data."""
    labels = {LABEL: name} | ({"kueue.x-k8s.io/queue-name": pods.queue} if pods.queue else {})
    exclusive = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    work = {
        "parallelism": pods.hosts,
        "completions": pods.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [PREEMPTED]}},
            ]
        },
        "template": _pod(pods, name, job),
    }
    policy = {
        "maxRestarts": pods.restarts,
        "restartStrategy": "BlockingRecreate",
        "rules": [
            {
                "name": "preempted",
                "action": "RestartJobSetAndIgnoreMaxRestarts",
                "onJobFailureReasons": ["PodFailurePolicy"],
            }
        ],
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name, "labels": labels, "annotations": exclusive if pods.exclusive else {}},
        "spec": {
            "failurePolicy": policy,
            "network": {"enableDNSHostnames": True, "subdomain": name},
            "replicatedJobs": [{"name": "worker", "replicas": 1, "template": {"spec": work}}],
        },
    }


def _pod(pods, name, job):
    """Return the template of the pods, one for each host."""
    container = {
        "name": "train",
        "image": pods.image,
        "command": [word.replace("$", "$$") for word in command(job, python="python")],
        "env": _environment(pods, name),
        "ports": [{"containerPort": PORT}],
        "resources": {"limits": pods.limits, "requests": pods.limits},
        "volumeMounts": [{"name": "runs", "mountPath": str(pods.volume.path)}],
    }
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": SAVING,
        "nodeSelector": pods.nodes,
        "containers": [container],
        "volumes": [{"name": "runs", **lookup(VOLUMES, pods.volume.kind, "kind of volume")(pods.volume.name)}],
    }
    if pods.account:
        spec["serviceAccountName"] = pods.account
    bucket = pods.volume.kind == "bucket"
    return {
        "metadata": {"labels": {LABEL: name}, "annotations": {"gke-gcsfuse/volumes": "true"} if bucket else {}},
        "spec": spec,
    }


def _environment(pods, name):
    """Say how the pods find each other: on TPUs JAX knows; elsewhere the first is known by its name."""
    if pods.hosts == 1:
        return []
    if pods.exclusive:
        return [{"name": VARIABLE, "value": "auto"}]
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    known = described("$(PLACE)", pods.hosts, f"{name}-worker-0-0.{name}:{PORT}")
    return [
        {"name": "PLACE", "valueFrom": {"fieldRef": {"fieldPath": index}}},
        *({"name": key, "value": value} for key, value in known.items()),
    ]


def _limits(slice_: Topology | None, gpus: int) -> dict[str, int]:
    if slice_:
        return {"google.com/tpu": slice_.chips // slice_.hosts}
    return {"nvidia.com/gpu": gpus} if gpus else {}


def _nodes(slice_: Topology | None) -> dict[str, str]:
    if slice_ is None:
        return {}
    names = "cloud.google.com/gke-tpu-accelerator", "cloud.google.com/gke-tpu-topology"
    return dict(zip(names, (slice_.node, slice_.shape), strict=True))


def _read_volume(text: str) -> Volume:
    """Read KIND:NAME:PATH."""
    kind, _, rest = text.partition(":")
    name, _, path = rest.partition(":")
    lookup(VOLUMES, kind, "kind of volume")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", name) or not re.fullmatch(r"/[\w./-]+", path):
        raise ValueError(f"--volume is '{text}'; it must be like claim:NAME:/runs or bucket:NAME:/runs.")
    return Volume(kind, name, PurePosixPath(path))


def _refuse(pods: Pods, job: Job) -> None:
    if not PurePosixPath(job.workdir).is_relative_to(pods.volume.path) or ".." in job.workdir.parts:
        raise ValueError(
            f"--workdir {job.workdir} is not below {pods.volume.path}, where --volume is mounted, and would be lost "
            f"with its pod. Give --workdir {pods.volume.path}/NAME."
        )


def _every(where, words):
    """Return actions, one for each job of a launch, from the words that follow `kubectl` for its name."""
    return lambda launch: [Run(("kubectl", *words(launch.name_of(job)), *where)) for job in launch.jobs]


def _claim(name):
    return {"persistentVolumeClaim": {"claimName": name}}


def _bucket(name):
    attributes = {"bucketName": name, "mountOptions": "implicit-dirs"}
    return {"csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}


LABEL = "diffusion-jax/launch"

VOLUMES = {"claim": _claim, "bucket": _bucket}

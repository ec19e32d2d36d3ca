"""Manifests: their numbers are consistent, and words arrive as they were."""

import json
import re
from typing import Any

import pytest

from diffusion_jax.launch.backend import Launch
from diffusion_jax.launch.distributed import VARIABLE
from diffusion_jax.launch.job import Job, command
from diffusion_jax.launch.kubernetes import VOLUMES, kubernetes
from diffusion_jax.launch.topology import GENERATIONS, read_topology
from diffusion_jax.training.loop import PREEMPTED
from tests.launch.stand_ins import HOSTILE, hostile_job

SLICES = {"v4": "v4:2x2x4", "v5p": "v5p:4x4x4", "v5e": "v5e:16x16", "v6e": "v6e:2x4"}


def made(tmp_path, job=None, **options):
    """Return the JobSet that kubectl would read."""
    options = {"image": "registry/project/dj:1", "volume": f"claim:runs:{tmp_path}", **options}
    backend = kubernetes(**options)
    job = job or Job("toy", "configs/toy_2d.py", tmp_path / "toy")
    backend.refuse(job)
    run: Any = backend.start(Launch("toy", (job,)))[0]
    assert run.words[:2] == ("kubectl", "apply") and run.words[-1] == "--filename=-"
    return json.loads(run.stdin)


def work_of(manifest):
    (replicated,) = manifest["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def expanded(text, environment):
    """Read a word as Kubernetes does: $$ is $, $(NAME) the value of a known name."""
    known = lambda found: "$" if found[0] == "$$" else environment.get(found[1], found[0])
    return re.sub(r"\$\$|\$\(([^)]*)\)", known, text)


@pytest.mark.parametrize("generation", sorted(GENERATIONS))
def test_hosts_and_chips_make_the_slice(generation, tmp_path):
    work = work_of(made(tmp_path, topology=SLICES[generation]))
    (container,) = work["template"]["spec"]["containers"]
    asked = read_topology(SLICES[generation])
    nodes = work["template"]["spec"]["nodeSelector"]
    assert work["parallelism"] == work["completions"] == asked.hosts
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert work["parallelism"] * container["resources"]["limits"]["google.com/tpu"] == asked.chips
    assert nodes["cloud.google.com/gke-tpu-topology"] == SLICES[generation].partition(":")[2]
    assert nodes["cloud.google.com/gke-tpu-accelerator"] == GENERATIONS[generation].node
    several = [{"name": VARIABLE, "value": "auto"}] if asked.hosts > 1 else []
    assert container["env"] == several


def test_words_arrive_as_they_were(tmp_path):
    job = hostile_job("toy", tmp_path)
    work = work_of(made(tmp_path, job, gpus=8, hosts=4))
    (container,) = work["template"]["spec"]["containers"]
    environment = {"PLACE": "3", "HOME": "/root"}
    assert [expanded(word, environment) for word in container["command"]] == command(job, python="python")
    assert set(HOSTILE) == set(job.overrides)


def test_pods_without_tpus_know_their_place(tmp_path):
    manifest = made(tmp_path, gpus=8, hosts=4)
    work = work_of(manifest)
    (container,) = work["template"]["spec"]["containers"]
    place, where = container["env"]
    assert place["name"] == "PLACE" and "job-completion-index" in place["valueFrom"]["fieldRef"]["fieldPath"]
    assert expanded(where["value"], {"PLACE": "3"}) == "3/4@toy-worker-0-0.toy:8476"
    assert manifest["spec"]["network"]["subdomain"] == "toy" and work["completionMode"] == "Indexed"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}


def test_a_stop_from_outside_starts_all_again_and_does_not_count(tmp_path):
    manifest = made(tmp_path, restarts=5)
    work, policy = work_of(manifest), manifest["spec"]["failurePolicy"]
    rules = work["podFailurePolicy"]["rules"]
    assert {rule["action"] for rule in rules} == {"FailJob"}
    assert rules[1]["onExitCodes"] == {"operator": "In", "values": [PREEMPTED]}
    assert policy["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert policy["rules"][0]["action"] == "RestartJobSetAndIgnoreMaxRestarts" and policy["maxRestarts"] == 5
    assert work["backoffLimit"] == 0 and work["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("kind", sorted(VOLUMES))
def test_the_workdir_lies_where_the_volume_is(kind, tmp_path):
    work = work_of(made(tmp_path, volume=f"{kind}:runs:{tmp_path}"))
    (volume,), (container,) = work["template"]["spec"]["volumes"], work["template"]["spec"]["containers"]
    (mount,) = container["volumeMounts"]
    assert mount["name"] == volume["name"] and "runs" in str(volume) and str(tmp_path) == mount["mountPath"]
    assert bool(work["template"]["metadata"]["annotations"]) == (kind == "bucket")
    for workdir in ("/elsewhere/toy", f"{tmp_path}/../toy", "runs/toy"):
        with pytest.raises(ValueError, match="where --volume is mounted"):
            made(tmp_path, Job("toy", "toy.py", type(tmp_path)(workdir)))


def test_a_queue_and_an_account_are_named(tmp_path):
    manifest = made(tmp_path, queue="multislice-queue", account="trainer", spot=True, topology="v5e:4x4")
    pod = work_of(manifest)["template"]["spec"]
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "multislice-queue"
    assert pod["serviceAccountName"] == "trainer" and pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert "exclusive-topology" in str(manifest["metadata"]["annotations"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topology": "v5e:4x4", "gpus": 8}, "leave --gpus and --hosts out"),
        ({"hosts": 0}, "--hosts 0"),
        ({"image": ""}, "--image is empty"),
        ({"volume": "disk:runs:/runs"}, "unknown kind of volume 'disk'"),
        ({"volume": "claim:runs:runs"}, "it must be like claim:NAME:/runs"),
    ],
)
def test_requests_that_cannot_be_meant_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        made(tmp_path, **options)

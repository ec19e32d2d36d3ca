"""Laws of every backend: what is printed is what is run, what is hostile arrives unchanged or is refused."""

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from diffusion_jax.launch import record
from diffusion_jax.launch.action import Failed, Run, Together, Write, carry_out, script
from diffusion_jax.launch.backend import Launch
from diffusion_jax.launch.backends import BACKENDS, make_backend
from diffusion_jax.launch.job import Job, check_label, command, label, repeated
from diffusion_jax.launch.tpu import CAPACITIES
from tests.launch.stand_ins import HOSTILE, calls, hostile_job, stand_in

OPTIONS = {
    "local": {"processes": 2},
    "tpu": {"topology": "v5e:4x4", "zone": "us-west4-a", "project": "research-1", "setup": "setup.sh"},
    "kubernetes": {"topology": "v6e:4x4", "image": "registry/project/dj:1", "volume": "claim:runs:/runs"},
    "slurm": {"time": "24:00:00", "nodes": 2, "gpus": 4, "partition": "gpu", "setup": "setup.sh"},
}
ASKED = ("start", "status", "logs", "stop")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A repository of one config to launch from."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "toy.py").write_text("")
    (folder / "setup.sh").write_text("true")
    for words in (["init", "-q"], ["add", "toy.py"], ["-c", "user.name=a", "-c", "user.email=a", "commit", "-qm", "a"]):
        subprocess.run(["git", *words], check=True, cwd=folder)
    monkeypatch.chdir(folder)
    monkeypatch.setitem(command.__kwdefaults__, "python", "python")
    return folder


def launch_of(backend, place):
    root = {"kubernetes": "/runs"}.get(backend, place)
    jobs = tuple(hostile_job(name, type(place)(root) / name) for name in ("one", "two"))
    for job in jobs:
        if backend == "local":
            job.workdir.mkdir(parents=True)
            for process in range(2):
                (job.workdir / f"log.{process}.txt").write_text("said\n")
    (place / "launches").mkdir()
    for number in range(2):
        (place / "launches" / f"toy.{number}.txt").write_text("said\n")
    return Launch("toy", jobs, ("7",))


def files(folder):
    """Return every file of a folder with what is in it, but for git's own; an archive has the time of its making."""
    found = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts]
    return {path: listed(path) if path.suffix == ".gz" else path.read_bytes() for path in found}


def listed(path):
    with tarfile.open(path) as archive:
        return [(one.name, one.size, one.mode) for one in archive]


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_the_script_that_is_printed_does_what_is_carried_out(backend, asked, place, tmp_path, monkeypatch):
    names = ("gcloud", "kubectl", "sbatch", "squeue", "scancel", "python")
    log = stand_in(tmp_path / "bin", monkeypatch, *names, answers={"describe": ("ACTIVE", 0), "sbatch": ("7", 0)})
    launch = launch_of(backend, place)
    make = getattr(make_backend({"name": backend, **OPTIONS[backend]}), asked)
    if make is None:
        assert backend == "local"
        return
    actions = make(launch)
    before = files(place)
    carry_out(actions)
    done, left = calls(log), files(place)
    for path in left.keys() - before.keys():
        path.unlink()
    subprocess.run(["bash", "-euc", script(actions)], check=True, stdin=subprocess.DEVNULL)
    shown = calls(log)
    key = lambda call: (call["place"], str(call))  # processes beside each other come in any order
    assert sorted(shown, key=key) == sorted(done, key=key)
    assert files(place) == left
    assert done or asked == "logs"
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_the_record_of_a_launch_brings_it_back(backend, place):
    launch, spec = launch_of(backend, place), {"name": backend, **OPTIONS[backend]}
    record.note(record.Record(launch, spec))
    back = record.read("toy")
    assert back == record.Record(launch, spec)
    if backend != "local":  # whose processes meet at another address each time
        assert make_backend(back.backend).start(back.launch) == make_backend(spec).start(launch)
    with pytest.raises(ValueError, match="'toy' was launched before: see `status toy`"):
        record.check_new(back, again=False)
    record.check_new(back, again=True)
    with pytest.raises(ValueError, match="no launch is called 'tyo'. Did you mean 'toy'"):
        record.read("tyo")


@pytest.mark.parametrize("value", ["a b", "$(id)", "a\nb", "-x", "'", "a;b", "../x"])
@pytest.mark.parametrize(
    ("backend", "option"),
    [
        ("tpu", "zone"),
        ("tpu", "project"),
        ("tpu", "image"),
        ("tpu", "topology"),
        ("tpu", "capacity"),
        ("tpu", "setup"),
        ("kubernetes", "image"),
        ("kubernetes", "volume"),
        ("kubernetes", "namespace"),
        ("kubernetes", "queue"),
        ("kubernetes", "account"),
        ("slurm", "time"),
        ("slurm", "partition"),
    ],
)
def test_identifiers_are_refused_by_name(backend, option, value):
    given = {name: said for name, said in OPTIONS[backend].items() if name != "setup"}
    with pytest.raises(ValueError, match=option):
        make_backend({"name": backend, **given, option: value}).refuse(Job("a", "toy.py", Path("/runs/a")))


def test_names_are_those_that_every_place_takes():
    for name in ("toy", "a", "edm-256-x", "a" * 40):
        assert check_label(name, "--name") == name == label(name)
    for name in ("", "-a", "a-", "1a", "a.b", "a_b", "a" * 41, "a\n", "A"):
        with pytest.raises(ValueError, match="--name is"):
            check_label(name, "--name")
    assert (label("exp_12"), label("2d"), label("...")) == ("exp-12", "run-2d", "")
    with pytest.raises(ValueError, match="For example toy-2d-of-new-points"):
        check_label("Toy_2d (of new points)", "--name")


def test_repeats_differ_in_seed_and_folder_alone(tmp_path):
    job = Job("toy", "toy.py", tmp_path, {"a": 1})
    assert repeated(job, 1) == (job,)
    found = repeated(job, 3, seed=4)
    assert [one.overrides["seed"] for one in found] == [4, 5, 6]
    assert [one.workdir for one in found] == [tmp_path / f"seed={seed}" for seed in (4, 5, 6)]
    assert {one.name for one in found} == {"toy-4", "toy-5", "toy-6"}
    assert all({**one.overrides, "seed": 0} == {"a": 1, "seed": 0} for one in found)
    with pytest.raises(ValueError, match="--repeats is 0"):
        repeated(job, 0)


def test_an_option_of_another_backend_is_refused_with_whose_it_is():
    with pytest.raises(ValueError, match="backend 'local' does not take 'zone'.*It belongs to tpu"):
        make_backend({"name": "local", "zone": "us-west4-a"})
    with pytest.raises(ValueError, match="unknown backend 'slrum'. Did you mean 'slurm'"):
        make_backend({"name": "slrum"})
    with pytest.raises(ValueError, match="backend 'tpu' needs 'topology', 'zone'"):
        make_backend({"name": "tpu"})


@pytest.mark.parametrize("capacity", sorted(CAPACITIES))
def test_a_capacity_is_asked_for(capacity, place):
    backend = make_backend({"name": "tpu", **OPTIONS["tpu"], "capacity": capacity, "image": "a/b:1"})
    asked = [action for action in backend.start(launch_of("tpu", place)) if isinstance(action, Run)]
    assert {"--spot", "--reserved"} & set(asked[0].words) == {"on_demand": set()}.get(capacity, {f"--{capacity}"})


def test_a_command_that_fails_ends_it_and_says_why(tmp_path, monkeypatch):
    path = tmp_path / "after"
    with pytest.raises(Failed, match="false ended with exit code 1"):
        carry_out([Run(("false",)), Write(path, "text\n")])
    with pytest.raises(Failed, match="there is no 'kubectl-of-nobody' on this machine"):
        carry_out([Together((Run(("kubectl-of-nobody",)),)), Write(path, "text\n")])
    assert not path.exists()


def test_what_is_said_need_not_be_whole_letters():
    assert carry_out([Run(("printf", "1%%\\r2%%\\303"))]) == ["1%\r2%\N{REPLACEMENT CHARACTER}"]


def test_waiting_goes_on_until_the_word_comes_or_cannot(tmp_path):
    (tmp_path / "said").write_text("0")
    count = f'n=$(cat "{tmp_path}/said"); echo $((n + 1)) > "{tmp_path}/said"; echo $n'
    pauses = []
    run = Run(("sh", "-c", count), until="3", unless=("9",))
    assert carry_out([run], pause=pauses.append) == ["3"] and len(pauses) == 3
    with pytest.raises(Failed, match="says 9; 3 was waited for"):
        carry_out([run], pause=pauses.append)


def test_hostile_lines_are_read_letter_by_letter(tmp_path):
    text = "\n".join([*HOSTILE.values(), "END", "END_", ""])
    path = tmp_path / "a b" / "$(x)"
    subprocess.run(["bash", "-euc", script([Write(path, text), Run(("cat",), stdin=text)])], check=True, env=os.environ)
    assert path.read_text() == text

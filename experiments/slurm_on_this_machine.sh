#!/usr/bin/env bash
# Run SLURM on this machine, as root and for this script alone, and an array of runs on it that are stopped on the way.
#
#     apt-get install -y slurm-wlm munge && bash experiments/slurm_on_this_machine.sh
#
# Two runs of two processes each are launched; one is told to stop as by a preemption, goes back into the queue, and goes
# on to its end; a third is cancelled, and does not come back. What each ends with is compared with runs that nothing
# stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$(mktemp -d /tmp/slurm.XXXXXX)
export SLURM_CONF=$here/slurm.conf PYTHONPATH=$PWD JAX_PLATFORMS=cpu
python=${PYTHON:-$(command -v python)}
host=$(hostname -s)

cat > "$SLURM_CONF" <<END
ClusterName=here
SlurmctldHost=$host
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=$here/state
SlurmdSpoolDir=$here/spool
SlurmctldPidFile=$here/slurmctld.pid
SlurmdPidFile=$here/slurmd.pid
SlurmctldLogFile=$here/slurmctld.log
SlurmdLogFile=$here/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,requeue_setup_env_fail
JobRequeue=1
KillWait=30
MinJobAge=300
NodeName=$host CPUs=4 State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
END
mkdir -p "$here/state" "$here/spool" /run/munge /var/log/munge
chown munge: /run/munge /var/log/munge
[ -e /etc/munge/munge.key ] || { dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 status=none; }
chown munge: /etc/munge/munge.key
chmod 400 /etc/munge/munge.key
runuser -u munge -- munged --force &> /dev/null || munge -n > /dev/null
slurmctld -D &> "$here/controller.txt" &
controller=$!
slurmd -D &> "$here/node.txt" &
node=$!
trap 'kill $controller $node' EXIT
for _ in $(seq 60); do [ "$(sinfo --noheader --format=%T)" = idle ] && break; sleep 1; done
sinfo

cd "$here"
flags=(--config "$PYTHONPATH/configs/toy_2d.py:smoke" --config.training.save_every=100 --config.training.log_every=50
    --config.training.tensorboard=False --config.sampling.steps=2 --nocheck)
launch() { "$python" -m diffusion_jax launch "${flags[@]}" "$@"; }
slurm=(--backend slurm --tasks 2 --cpus 1 --python "$python")
say() { printf '\n== %s\n' "$*"; }
newest() { ls "$1/checkpoints" 2> /dev/null | grep -xE '[0-9]+' | sort -n | tail -n 1; }
until_step() { until [ "$(newest "$1" || true)" ] && [ "$(newest "$1")" -ge "$2" ]; do sleep 0.2; done; }
until_gone() { while [ "$(squeue --noheader --name="$1" | wc -l)" -gt 0 ]; do sleep 1; done; }
bits() { "$python" -c "
import json, sys
from pathlib import Path
folder = max((path for path in Path(sys.argv[1], 'checkpoints').iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
print(folder.name, json.loads((folder / 'about' / 'metadata').read_text())['bits'])" "$1"; }

say "two runs that nothing stops"
launch --backend local --processes 2 --workdir "$here/whole" --repeats 2 --config.training.steps=1000 | tail -n 2

say "an array of the same two; the first is told to stop after its first checkpoint"
launch "${slurm[@]}" --time 10:00 --parallel 1 --workdir "$here/array" --repeats 2 --config.training.steps=1000
number=$("$python" -c "import json; print(json.load(open('launches/array.json'))['said'][-1])")
until_step "$here/array/seed=0" 100
"$python" -m diffusion_jax status array
scancel --signal=TERM "${number}_0"
until_gone array
"$python" -m diffusion_jax logs array
for seed in 0 1; do
    [ "$(bits "$here/whole/seed=$seed")" = "$(bits "$here/array/seed=$seed")" ] && echo "seed $seed: the same bits"
done
grep -h "goes back into the queue" launches/array.*.txt

say "one that is cancelled saves, and does not come back"
launch "${slurm[@]}" --time 10:00 --workdir "$here/cancelled" --config.training.steps=100000
until_step "$here/cancelled" 100
"$python" -m diffusion_jax stop cancelled
until_gone cancelled
cat launches/cancelled.0.txt
squeue

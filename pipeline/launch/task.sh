#!/bin/sh
# One task of srun: task.sh COMMAND... tells COMMAND its rank in variables, whether it runs in a container or not. Ranks
# of one node meet in the file UNLEARN_STORE, where that is set. Nothing that Slurm lacks to set is guessed.
set -eu
export RANK="${SLURM_PROCID:?srun did not set it}"
export LOCAL_RANK="${SLURM_LOCALID:?srun did not set it}"
export WORLD_SIZE="${SLURM_NTASKS:?srun did not set it}"
if [ -z "${UNLEARN_STORE:-}" ]; then
    export MASTER_ADDR="${SLURM_LAUNCH_NODE_IPADDR:?srun did not set it}"
    # Below the ports that the kernel gives to connections; another one for each step of a job and for jobs beside it.
    job=${SLURM_JOB_ID:?srun did not set it} step=${SLURM_STEP_ID:?srun did not set it}
    export MASTER_PORT="$((15000 + (job * 97 + step) % 16000))"
fi
# A container starts with an environment of its own. GPUs are numbered by each node for itself.
for name in RANK LOCAL_RANK WORLD_SIZE UNLEARN_STORE MASTER_ADDR MASTER_PORT MASTER_HOST \
    SLURM_JOB_ID SLURM_JOB_NODELIST SLURMD_NODENAME SLURM_GPUS_ON_NODE CUDA_VISIBLE_DEVICES; do
    eval "[ -z \"\${$name+set}\" ] || export APPTAINERENV_$name=\"\$$name\""
done
exec "$@"

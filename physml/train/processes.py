"""Several processes as one machine: started by a cluster's own launcher, or here by `physml launch`."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import jax

from physml.core import check

_ADDRESS, _COUNT, _RANK = "PHYSML_COORDINATOR", "PHYSML_PROCESSES", "PHYSML_RANK"


def start_processes(
    coordinator: str | None = None, processes: int | None = None, rank: int | None = None, *, timeout: int = 60
) -> int:
    """Make this process one of several: the first call of a program, before any array.

    Afterwards `jax.devices()` are those of all processes; `data_parallel()` lies over them, and `fit`, `ensemble`,
    `run_chains` and `tune` run on arrays that are spread over it. Every process executes the same program.

    **Arguments.** None under SLURM, Open MPI, Kubernetes with JobSet or on TPU pods, which say all that is needed, and
    under `physml launch`. Elsewhere the `coordinator`, "host:port" of process 0, how many `processes`, and this one's
    `rank`. `timeout`: seconds to wait for all of them; also those after which a process that died ends the others.
    **Returns** the rank; 0 for a single process. **Errors.** `ValueError` for a part of the three; jax raises when a
    process does not come in time.

    ```sh
    srun --ntasks 8 --gpus-per-task 1 python train.py        # SLURM
    physml launch --processes 2 train.py                     # here
    ```
    """
    check.count(timeout, "timeout")
    given = (coordinator, processes, rank)
    if all(value is None for value in given) and _ADDRESS in os.environ:
        coordinator, processes, rank = os.environ[_ADDRESS], int(os.environ[_COUNT]), int(os.environ[_RANK])
    elif any(value is None for value in given) and any(value is not None for value in given):
        raise ValueError("give coordinator, processes and rank, all three, or none of them")
    if processes == 1:
        return 0
    if coordinator is None and not _under_a_cluster():
        return 0
    jax.distributed.initialize(
        coordinator, processes, rank, initialization_timeout=timeout, heartbeat_timeout_seconds=timeout
    )
    return jax.process_index()


def _under_a_cluster():
    """Whether one of the launchers that jax knows has started this process, with others."""
    known = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "JAX_COORDINATOR_ADDRESS", "JOBSET_NAME", "TPU_WORKER_HOSTNAMES")
    return any(os.environ.get(name, "1") != "1" for name in known)


def launch(command: Sequence[str], processes: int, *, poll: float = 0.2) -> int:
    """Run `python *command` as several processes on this machine; the exit status is 0 if all of them ended well.

    As soon as one fails, or is killed, the others are stopped: they would wait for it.
    """
    processes = check.count(processes, "processes")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    about = lambda rank: {_ADDRESS: address, _COUNT: str(processes), _RANK: str(rank)}
    children = [
        subprocess.Popen([sys.executable, *command], env={**os.environ, **about(rank)}) for rank in range(processes)
    ]
    try:
        while True:
            codes = [child.poll() for child in children]
            for rank, code in enumerate(codes):
                if code:
                    how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
                    print(
                        f"physml launch: process {rank} of {processes} {how}; the others were stopped. The same "
                        "command continues from the last checkpoint, where the program writes one",
                        file=sys.stderr,
                    )
                    return code if code > 0 else 128 - code
            if all(code == 0 for code in codes):
                return 0
            time.sleep(poll)
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
        for child in children:
            child.wait()

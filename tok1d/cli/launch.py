"""`tok1d launch`: a command as a job on a SLURM cluster."""

from __future__ import annotations

from typing import Annotated

import typer

from tok1d.cli.options import one_of

PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}  # options of the launched command


def launch(
    command: Annotated[
        list[str],
        typer.Argument(help="RECIPE [key=value ...], or evaluate or encode with their arguments", show_default=False),
    ],
    nodes: Annotated[int, typer.Option(min=1, help="number of machines")] = 1,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of each machine, one process on each")] = 1,
    tasks: Annotated[
        int | None, typer.Option(min=1, help="processes on each machine; default: one for each GPU")
    ] = None,
    cpus: Annotated[int, typer.Option(min=1, help="CPU cores of each process")] = 8,
    time: Annotated[
        str, typer.Option(help="time limit, MINUTES, HH:MM:SS or D-HH:MM:SS; then the job is requeued")
    ] = "24:00:00",
    partition: Annotated[str, typer.Option(help="partition of the cluster")] = "",
    slurm: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE, further options of sbatch such as account=ME; repeatable")
    ] = None,
    cluster: Annotated[
        str, typer.Option(help="slurm; local: processes on this machine; debug: this process")
    ] = "slurm",
    wait: Annotated[bool, typer.Option("--wait", help="wait until the job has ended")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only print the sbatch script")] = False,
) -> None:
    """Submit a command to SLURM, one process for each GPU; a preempted or timed-out job saves and is requeued.

    Logs of a training are in OUT/slurm/JOB, others in runs/slurm/JOB.
    """
    from tok1d.cli.app import run
    from tok1d.errors import InputError
    from tok1d.launch import slurm as module

    one_of("--cluster", cluster, ("slurm", "local", "debug"))
    further = {}
    for text in slurm or []:
        key, equals, value = text.partition("=")
        if not (equals and key and value):
            raise InputError(f"--slurm: expected KEY=VALUE such as account=ME, got {text!r}")
        further[key.replace("-", "_")] = value
    resources = module.Resources(nodes, gpus, tasks, cpus, module.parse_time(time), partition, further)
    if dry_run:
        arguments, logs, batch_size = module.job_of(command)
        module.check_batch(batch_size, resources)
        print(module.script(logs, resources, f"tok1d-{arguments[0]}"))
        print(f"# runs in each process: tok1d {' '.join(arguments)}")
        return
    job, logs = module.submit(command, resources, run, cluster=cluster)  # type: ignore[arg-type]
    print(f"job {job.job_id}; logs: {logs / str(job.job_id)}", flush=True)
    if wait or cluster == "debug":
        module.wait(job)
        print("the job has ended")

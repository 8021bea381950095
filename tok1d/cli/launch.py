"""`tok1d launch`: runs a command as a job on a SLURM cluster."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from typing import Annotated

import typer

from tok1d.cli.options import one_of

PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}  # options of the launched command are passed on


def launch(
    context: typer.Context,
    command: Annotated[
        list[str],
        typer.Argument(
            help="RECIPE [key=value ...] to train, or evaluate or encode with their arguments", show_default=False
        ),
    ],
    nodes: Annotated[int, typer.Option(min=1, help="number of nodes")] = 1,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs per node; one process runs on each")] = 1,
    tasks: Annotated[int | None, typer.Option(min=1, help="processes per node; default: one per GPU")] = None,
    cpus: Annotated[int, typer.Option(min=1, help="CPU cores per process")] = 8,
    time: Annotated[
        str, typer.Option(help="time limit as MINUTES, HH:MM:SS or D-HH:MM:SS; at the limit the job is requeued")
    ] = "24:00:00",
    partition: Annotated[str, typer.Option(help="partition of the cluster")] = "",
    slurm: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE, a further option of sbatch such as account=NAME; repeatable")
    ] = None,
    cluster: Annotated[
        str, typer.Option(help="where the job runs: slurm, local (processes on this machine), or debug (this process)")
    ] = "slurm",
    wait: Annotated[bool, typer.Option("--wait", help="wait for the end of the job")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only print the sbatch script")] = False,
) -> None:
    """Submit a command as a SLURM job with one process per GPU.

    A job that is preempted or reaches its time limit saves its state, is requeued and resumes. Logs of a training are
    in OUT/slurm/JOB, where OUT is its run folder, logs of other commands in runs/slurm/JOB.
    """
    from tok1d.errors import InputError
    from tok1d.launch import slurm as module

    one_of("--cluster", cluster, ("slurm", "local", "debug"))
    further = {}
    for text in slurm or []:
        key, equals, value = text.partition("=")
        if not (equals and key and value):
            raise InputError(f"--slurm: expected KEY=VALUE such as account=NAME, got {text!r}")
        further[key.replace("-", "_")] = value
    resources = module.Resources(nodes, gpus, tasks, cpus, module.parse_time(time), partition, further)
    given = context.parent.params if context.parent else {}
    imports = [f"--import={name}" for name in given.get("imports") or []]
    imports += ["--full-hash"] if given.get("full_hash") else []
    if dry_run:
        arguments, logs, batch_size = module.job_of(command)
        module.check_batch(batch_size, resources)
        print(module.script(logs, resources, f"tok1d-{arguments[0]}"))
        print(f"# runs in each process: {shlex.join(['tok1d', *imports, *arguments])}")
        return
    job, logs = module.submit(command, resources, partial(run_with, context.obj, imports), cluster=cluster)  # type: ignore[arg-type]
    print(f"job {job.job_id}; logs: {logs / str(job.job_id)}", flush=True)
    if wait or cluster == "debug":
        module.wait(job)
        print("the job has ended")


def run_with(run: Callable[[list[str]], int], imports: list[str], arguments: list[str]) -> int:
    """Run a command line with the options before the command and return its exit code."""
    return run([*imports, *arguments])

"""Files of Debian packages, downloaded and unpacked without root rights."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tok1d.errors import DataError, reason_of


def fetch_package(package: str, work: Path, name: str) -> None:
    """Download a package and unpack it into the folder `work`, by apt with state and cache folders of its own.

    Args:
        name: what is downloaded, for the lines on stderr.

    Raises:
        DataError, OSError, subprocess.SubprocessError: there is no apt, or the download failed.
    """
    missing = [tool for tool in ("apt-get", "dpkg") if shutil.which(tool) is None]
    if missing:
        raise DataError(f"no {' and no '.join(missing)} here")
    state, cache = work / "apt-state", work / "apt-cache"
    for folder in (state / "lists" / "partial", cache / "archives" / "partial"):
        folder.mkdir(parents=True)  # apt does not create them
    private_cache = [f"Dir::Cache={cache}", f"Dir::Cache::archives={cache / 'archives'}"]
    private_state = [f"Dir::State={state}", f"Dir::State::lists={state / 'lists'}"]
    # As root, apt would otherwise download as user _apt, which may not write here. Package hashes are still checked.
    quick = ["APT::Sandbox::User=root", "Acquire::Retries=1", "Acquire::Languages=none"]
    quick += ["Acquire::http::Timeout=15", "Acquire::https::Timeout=15"]
    # apt's binary caches (60 MB) are not needed for one package.
    quick += ["Dir::Cache::pkgcache=", "Dir::Cache::srcpkgcache="]

    def apt(*arguments: str, options: list[str]) -> None:
        flags = [part for option in (*private_cache, *quick, *options) for part in ("-o", option)]
        run(["apt-get", "-q", *flags, *arguments], work, timeout=300)

    try:
        apt("download", package, options=[])
    except (OSError, subprocess.SubprocessError):
        # The system's package lists are empty or out of date: update lists of our own. A broken third-party source
        # makes `update` fail although Debian's own lists have arrived, so its failure is only printed.
        try:
            apt("update", options=private_state)
        except subprocess.CalledProcessError as error:
            print(f"{name}: apt-get update: {process_reason(error)}", file=sys.stderr, flush=True)
        apt("download", package, options=private_state)
    archives = list(work.glob(f"{package}_*.deb"))
    if not archives:
        raise DataError(f"apt-get left no {package} package")
    run(["dpkg", "-x", str(archives[0]), str(work)], work, timeout=120)
    archives[0].unlink()


def run(command: list[str], folder: Path, timeout: float) -> None:
    """Run a command in a folder, without input; raises subprocess.SubprocessError or OSError where it fails."""
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
        errors="replace", timeout=timeout, check=True, encoding="utf-8"
    )  # fmt: skip


def process_reason(error: BaseException) -> str:
    """Summarise why a source failed in one line: of a command, the last line that it printed."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"no answer within {error.timeout:.0f} s"
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line.strip() for line in (error.stderr or error.stdout or "").splitlines() if line.strip()]
        return lines[-1] if lines else f"{Path(error.cmd[0]).name} ended with {error.returncode}"
    return reason_of(error, limit=1000)

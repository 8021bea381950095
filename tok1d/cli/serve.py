"""`tok1d serve`: a page to try models in a browser."""

from __future__ import annotations

from typing import Annotated

import typer

from tok1d.cli.options import MODEL_HELP, PATH, Device, expanded
from tok1d.serve.request import Serving


@expanded
def serve(
    how: Serving,
    models: Annotated[
        list[str] | None, typer.Argument(help=f"{MODEL_HELP}; default: all bundled models", show_default=False), PATH
    ] = None,
    device: Device = None,
) -> None:
    """Serve a page to try models in a browser: reconstruct, generate, mix pictures, and look inside. Ctrl-C ends it.

    Only this machine can connect, and the page loads nothing from elsewhere.
    """
    from tok1d.errors import ConfigError
    from tok1d.serve.shelf import EMPTY, bundled_shelf

    try:
        from tok1d.serve import server
        from tok1d.serve.controls import Work
    except ImportError as error:
        raise ConfigError(f"serve: needs the package {error.name}: pip install 'tok1d[web]'") from None

    if models:
        from tok1d.serve.models import Models

        loaded = Models(EMPTY, device)
        work = Work(loaded.add(models), device=device, data=how.data, models=loaded)
    else:
        work = Work(bundled_shelf(), device=device, data=how.data)

    def started(address: str) -> None:
        print(f"tok1d: {address} (Ctrl-C ends it)", flush=True)

    server.serve(work, how.port, started)

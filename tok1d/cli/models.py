"""Command `tok1d models`."""

from __future__ import annotations


def models() -> None:
    """List the bundled models: name, kind and a line on each."""
    import tok1d

    print(tok1d.models())
    print("\ncommands and tok1d.load take these names, folders, and OWNER/NAME on the Hugging Face hub")

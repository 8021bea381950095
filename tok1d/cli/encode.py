"""`tok1d encode`: writes the tokens of a data set into a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tok1d.cli.options import (
    Data,
    DataRoot,
    Device,
    Model,
    OnBroken,
    Overwrite,
    Shard,
    expanded,
    load_tokenizer,
    one_of,
)
from tok1d.inference.request import Encoding


@expanded
def encode(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="folder of the token cache")],
    how: Encoding,
    shard: Shard = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only print the number of rows, the size and the free space")
    ] = False,
    on_broken: OnBroken = "skip",
    data_root: DataRoot = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Write the tokens of a data set into a cache, on which generators are trained.

    The 1,281,167 images of ImageNet in 20 views, with 32 tokens of 16 bfloat16 numbers, take 26.2 GB on disk; with 256
    tokens 210 GB. The published code needs 52.5 and 419.8 GB of shared memory (float32).

    Several processes can write one cache: with torchrun, or as jobs with access to the same folder, each with --shard
    I/N. After an interruption the same command resumes. The last process completes the cache.
    """
    from tok1d import devices
    from tok1d.data.broken import replaced_text
    from tok1d.data.labels import say_classes
    from tok1d.inference import cache
    from tok1d.inference import images as sources

    one_of("--on-broken", on_broken, ("stop", "skip"))
    part = cache.parse_part(shard) if shard else devices.process_part()
    tokenizer = load_tokenizer(model, device or devices.process_device())
    cache.tokens_kept(tokenizer.spec, how.num_tokens)
    if how.moments:
        cache.check_variational(tokenizer, "--moments")
    images = sources.open_data(
        data, tokenizer, split=how.split, data_root=data_root, on_broken=on_broken, needs_classes=True
    )
    images = cache.with_views(images, how.views)
    if dry_run:
        count = images.transform.num_views
        print(cache.forecast(cache.cache_layout(tokenizer.spec, count, how.format), len(images), count, out))
        return
    say_classes(images)
    made = cache.encode_images(
        tokenizer,
        images,
        out,
        format=how.format,
        part=part,
        label=how.label,
        seed=how.seed,
        overwrite=overwrite,
        budgeting=how.budgeting,
    )
    if made is None:
        print(f"shard {part[0]}/{part[1]} is written; {out} is complete when the other shards are")
    else:
        replaced = replaced_text(len(getattr(images, "replaced", [])))
        print(f"{len(made)} rows of {made.num_tokens} tokens in {out}{', ' if replaced else ''}{replaced}")

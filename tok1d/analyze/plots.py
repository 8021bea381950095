"""What the plots of several tokenizers share, and batches of numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from tok1d.tokenizers.prefix import prefix_lengths

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def ranges(num: int, size: int) -> Iterator[range]:
    """The numbers 0..num - 1 in ranges of `size`, the last one shorter."""
    return (range(start, min(start + size, num)) for start in range(0, num, size))


def keep_axis(axes: Axes, keep: Iterable[int], *, beside: bool = False) -> None:
    """Label the axis of the numbers of tokens, logarithmic above 16 tokens, and show the legend of what was plotted.

    Args:
        beside: the legend is to the right of the plot, for many lines.
    """
    ticks = sorted(set(keep))
    if ticks[-1] > 16:
        axes.set_xscale("symlog", base=2, linthresh=1)
        ticks = sorted({*(tick for tick in ticks if tick == 0), *prefix_lengths(ticks[-1])})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("tokens")
    axes.grid(alpha=0.3)
    if axes.lines:
        where = (1.0, 0.5) if beside else None
        axes.legend(frameon=False, fontsize=8, loc="center left" if beside else "best", bbox_to_anchor=where)

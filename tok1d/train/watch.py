"""Signs that a run goes wrong, each told once: a loss that jumps, codes that die, a discriminator that wins."""

from __future__ import annotations

import sys
from collections import deque
from statistics import median
from typing import Any

from tok1d.train.ema import EMA

HISTORY = 20  # log lines that a new one is held against
SPIKE = 3.0  # times their median
FEW_CODES = 0.05  # share of a codebook
WON = 2.0  # distance of the mean logits of real and fake images beyond which the hinge loss is 0
COLD = 0.05  # share of the random start in averaged weights that shows in pictures


class Watch:
    """Looks at every line of the log; remembers what it has said."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.said: set[str] = set()
        self.losses: deque[float] = deque(maxlen=HISTORY)
        self.lowest = self.last = float("inf")

    def look(self, entry: dict[str, Any]) -> list[str]:
        """Warnings that a log line gives rise to, printed on stderr; each kind comes once a sitting."""
        found = {"spike": self._spike(entry), "codes": self._codes(entry), "discriminator": self._discriminator(entry)}
        found["adaptive"] = self._adaptive(entry)
        return [self.tell(kind, text) for kind, text in found.items() if text and kind not in self.said]

    def tell(self, kind: str, text: str) -> str:
        """Print a warning unless one of its kind was printed."""
        if kind not in self.said and not self.quiet:
            print(f"warning: {text}", file=sys.stderr)
        self.said.add(kind)
        return text

    def rose(self) -> str:
        """How the loss grew before the end, in words; "" where it did not."""
        if not self.losses or not self.last > SPIKE * self.lowest:
            return ""
        return f"the loss rose from {self.lowest:.3g} to {self.last:.3g} before"

    def preview(self, ema: EMA, step: int) -> None:
        """Warn where a picture after `step` steps shows averages that still hold much of the random start."""
        share = ema.share_of_start(step)
        if share > COLD:
            self.tell(
                "ema",
                f"step {step}: the averaged weights (EMA) are not warm yet, {share:.0%} of them is the random start; "
                "early previews look worse than the model is",
            )

    def _spike(self, entry: dict[str, Any]) -> str:
        loss = sum(value for name, value in entry.items() if name.startswith("loss") and isinstance(value, float))
        usual = median(self.losses) if len(self.losses) >= HISTORY // 4 else 0.0
        self.losses.append(loss)
        self.lowest, self.last = min(self.lowest, loss), loss
        if usual <= 0 or loss <= SPIKE * usual:
            return ""
        return (
            f"step {entry['step']}: the loss jumped to {loss:.4g}, {loss / usual:.1f} times its usual {usual:.4g}; "
            "where it stays there, go back to a checkpoint with a lower train.lr or a longer train.warmup"
        )

    def _codes(self, entry: dict[str, Any]) -> str:
        used = entry.get("codes_used")
        if used is None or used >= FEW_CODES:
            return ""
        return (
            f"step {entry['step']}: a batch uses {used:.1%} of the codebook; where this does not grow, the codes are "
            "dying: set model.bottleneck.revival, a lower train.lr, or fewer codes"
        )

    def _adaptive(self, entry: dict[str, Any]) -> str:
        if entry.get("adaptive_weight") != 0:
            return ""
        return (
            f"step {entry['step']}: the adaptive weight of the adversarial loss was 0 since the last line of the log: "
            "the discriminator taught nothing. Its gradients overflow in half precision: set train.precision=bf16 or "
            "fp32, or adversarial.adaptive=false"
        )

    def _discriminator(self, entry: dict[str, Any]) -> str:
        real, fake = entry.get("d_logits_real"), entry.get("d_logits_fake")
        if real is None or fake is None or real - fake <= WON:
            return ""
        return (
            f"step {entry['step']}: the discriminator wins, mean logits {real:.2f} of real and {fake:.2f} of fake "
            "images; set a lower adversarial.optim.lr, adversarial.weight, or adversarial.lecam"
        )

"""Warnings about a training that goes wrong: jumps of the loss, unused codes, a discriminator that is too strong."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable
from statistics import median

from tok1d.train.ema import EMA
from tok1d.train.log import LogEntry

HISTORY = 20  # earlier log lines that a new one is compared with
JUMP = 3.0  # a loss above this many times their median is a jump
MIN_CODES = 0.05  # a batch that uses a smaller fraction of the codebook is reported
MAX_LOGIT_GAP = 2.0  # mean logits of real minus fake images; the hinge loss is 0 from here on
MAX_INITIAL = 0.05  # share of the initial random weights in the average that is visible in previews


class Monitor:
    """Checks every line of the log; each kind of warning is printed once.

    Args:
        phases: steps after which the loss is of another kind, such as the start of tail dropping; it is not compared
            with the loss before.
    """

    def __init__(self, phases: Iterable[float] = (), *, quiet: bool = False) -> None:
        self.phases = sorted(phases)
        self.quiet = quiet
        self.warned: set[str] = set()
        self.losses: deque[float] = deque(maxlen=HISTORY)
        self.lowest = self.last = float("inf")

    def check(self, entry: LogEntry) -> list[str]:
        """Print new warnings about a log line on stderr, and return them."""
        numbers = {name: float(value) for name, value in entry.items() if isinstance(value, int | float)}
        while self.phases and numbers["step"] > self.phases[0]:
            del self.phases[0]
            self.losses.clear()
            self.lowest = float("inf")
        found = {
            "jump": self._jump(numbers),
            "codes": _unused_codes(numbers),
            "discriminator": _strong_discriminator(numbers),
            "adaptive": _zero_adaptive_weight(numbers),
        }
        texts = {kind: f"step {entry['step']}: {text}" for kind, text in found.items() if text}
        return [self.warn(kind, text) for kind, text in texts.items() if kind not in self.warned]

    def warn(self, kind: str, text: str) -> str:
        """Print a warning unless one of its kind was printed before; returns its text."""
        if kind not in self.warned and not self.quiet:
            print(f"warning: {text}", file=sys.stderr)
        self.warned.add(kind)
        return text

    def loss_rise(self) -> str:
        """Describe a loss that is more than JUMP times its lowest value so far; "" if it is not."""
        if not self.losses or not self.last > JUMP * self.lowest:
            return ""
        return f"the loss rose from {self.lowest:.3g} to {self.last:.3g} before this step"

    def check_preview(self, ema: EMA, step: int) -> None:
        """Warn where a preview after `step` steps shows averages that still contain much of the initial weights."""
        share = ema.share_of_initial(step)
        if share > MAX_INITIAL:
            self.warn(
                "ema",
                f"step {step}: the averaged weights (EMA) still contain {share:.0%} of the random initial weights; "
                "early previews look worse than the model is",
            )

    def _jump(self, numbers: dict[str, float]) -> str:
        loss = sum(value for name, value in numbers.items() if name.startswith("loss"))
        usual = median(self.losses) if len(self.losses) >= HISTORY // 4 else 0.0
        self.losses.append(loss)
        self.lowest, self.last = min(self.lowest, loss), loss
        if usual <= 0 or loss <= JUMP * usual:
            return ""
        return (
            f"the loss jumped to {loss:.4g}, {loss / usual:.1f} times its median {usual:.4g}; if it stays there, "
            "resume from an earlier checkpoint with a lower train.lr or a longer train.warmup"
        )


def _unused_codes(numbers: dict[str, float]) -> str:
    used = numbers.get("codes_used")
    if used is None or used >= MIN_CODES:
        return ""
    return (
        f"a batch uses {used:.1%} of the codebook; if this does not grow, the codebook collapses: set "
        "model.bottleneck.revival, a lower train.lr, or fewer codes"
    )


def _zero_adaptive_weight(numbers: dict[str, float]) -> str:
    if numbers.get("adaptive_weight") != 0:
        return ""
    return (
        "the adaptive weight of the adversarial loss has been 0 since the previous log line, so the tokenizer learnt "
        "nothing from the discriminator. Its gradients overflow in half precision: set train.precision=bf16 or fp32, "
        "or adversarial.adaptive=false"
    )


def _strong_discriminator(numbers: dict[str, float]) -> str:
    real, fake = numbers.get("d_logits_real"), numbers.get("d_logits_fake")
    if real is None or fake is None or real - fake <= MAX_LOGIT_GAP:
        return ""
    return (
        f"the discriminator is too strong, mean logits {real:.2f} of real and {fake:.2f} of fake images; set a lower "
        "adversarial.optim.lr or adversarial.weight, or adversarial.lecam"
    )

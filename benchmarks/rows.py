"""One line of a benchmark's results."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """A measurement, beside what it is compared with.

    Attributes:
        name: "what/where".
        value: the measurement, in `unit`; None where it was not taken.
        baseline: in words, what it is compared with; "" where with nothing.
        baseline_value: that, in the same unit, measured in the same run.
        reason: why it was not taken.
    """

    name: str
    value: float | None
    unit: str
    baseline: str = ""
    baseline_value: float | None = None
    reason: str = ""

    @property
    def ratio(self) -> float | None:
        """value / baseline_value; None where either was not taken, or there is nothing to divide by."""
        return self.value / self.baseline_value if self.value is not None and self.baseline_value else None

    def record(self, device: str) -> dict[str, Any]:
        """For build/bench.json. device: what it was measured on."""
        fields = {**asdict(self), "ratio": self.ratio, "device": device}
        return fields if self.reason else {key: value for key, value in fields.items() if key != "reason"}

    def line(self) -> str:
        """For a table that people read."""
        if self.value is None:
            return f"{self.name:24} not run: {self.reason}"
        text = f"{self.name:24} {self.value:9.4g} {self.unit:11}"
        if self.baseline_value is None:
            return text.rstrip()
        ratio = "" if self.ratio is None else f", ratio {self.ratio:.3f}"
        return f"{text} {self.baseline}: {self.baseline_value:.4g}{ratio}"

"""Write docs/rules.md's table again, from instaflow_core/rules.py: `python scripts/rules_table.py`."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from instaflow_core.rules import RULES, Rule  # noqa: E402

DOCUMENT = ROOT / "docs" / "rules.md"
_HEAD = (
    *(
        "rule",
        "model and weights",
        "kept as",
        "predicts",
        "one step",
        "several steps",
        "KSampler",
        "guidance",
        "decoder",
    ),
    "licence of the weights",
)


def table() -> str:
    """The rows as Markdown."""
    lines = [_HEAD, ("---",) * len(_HEAD), *(_cells(rule) for rule in RULES.values())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(rule: Rule) -> tuple[str, ...]:
    steps = f"{rule.steps} step{'' if rule.steps == 1 else 's'}"
    return (
        f"`{rule.name}`",
        f"{rule.model}: {rule.weights}",
        rule.kept,
        rule.prediction,
        rule.equation,
        rule.several,
        f"`{rule.sampler}`, `simple`, {steps}",
        f"{rule.guidance:g}",
        rule.decoder,
        rule.licence,
    )


def with_table(document: str) -> str:
    """The document with the table between its two marks."""
    start, end = "<!-- rules -->\n", "<!-- end of rules -->"
    return re.sub(f"{start}.*{end}", lambda _: f"{start}{table()}\n{end}", document, flags=re.DOTALL)


if __name__ == "__main__":
    DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
    print(DOCUMENT)

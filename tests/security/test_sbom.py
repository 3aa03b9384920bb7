"""The bill of materials is what the pack asks for and brings."""

from __future__ import annotations

import sbom


def test_the_committed_bill_is_the_present_one() -> None:
    committed = sbom.SBOM.read_text(encoding="utf-8")
    assert committed == sbom.text(), "run: python3 scripts/sbom.py"

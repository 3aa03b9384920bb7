"""The languages beside English, and their words."""

from __future__ import annotations

import json
from typing import Any

from devhost import ROOT

LANGUAGES = ("zh", "ja", "ko")  # ComfyUI itself is documented in these and in English


def words(language: str, file: str) -> Any:
    return json.loads((ROOT / "locales" / language / file).read_text(encoding="utf-8"))

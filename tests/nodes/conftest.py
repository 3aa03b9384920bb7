"""Which tests of the nodes run where."""

from __future__ import annotations

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "community: other packs' own code; run where COMMUNITY_PACKS names their folder")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "COMMUNITY_PACKS" not in os.environ:
        left_out = [item for item in items if item.get_closest_marker("community")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]

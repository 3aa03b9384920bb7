"""What the tests of faults share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from graph_parts import Parts
from small_runs import begin


@pytest.fixture(scope="session")
def parts(host: Any, two_rf: Any, teacher: Any) -> Parts:
    """The host's nodes and small models of every kind, for the tables of graphs."""
    import folder_paths

    Path(folder_paths.get_temp_directory()).mkdir(parents=True, exist_ok=True)
    return Parts(host, two_rf, teacher)


@pytest.fixture(scope="session")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `begin` makes; nothing is written there."""
    return begin(tmp_path_factory.mktemp("begun"))

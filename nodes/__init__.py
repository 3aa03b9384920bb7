"""The nodes of the pack, listed by hand."""

from comfy_api.latest import ComfyExtension, io

from .analysis import InstaFlowCompare, InstaFlowStraightness
from .editing import InstaFlowControl, InstaFlowInvert
from .loading import InstaFlowLoadCheckpoint, InstaFlowLoadUNet, InstaFlowModelSampling, InstaFlowSaveCheckpoint
from .merging import InstaFlowMergeDelta
from .noise import InstaFlowInterpolateNoise, InstaFlowSeedNoise
from .perflow import InstaFlowPeRFlow
from .sampling import InstaFlowSampler, InstaFlowScheduler
from .training import InstaFlowDistill, InstaFlowLoadTriplets, InstaFlowReflow, InstaFlowTriplets

NODES: list[type[io.ComfyNode]] = [
    InstaFlowLoadCheckpoint,
    InstaFlowLoadUNet,
    InstaFlowModelSampling,
    InstaFlowSaveCheckpoint,
    InstaFlowMergeDelta,
    InstaFlowPeRFlow,
    InstaFlowSampler,
    InstaFlowScheduler,
    InstaFlowSeedNoise,
    InstaFlowInterpolateNoise,
    InstaFlowInvert,
    InstaFlowControl,
    InstaFlowStraightness,
    InstaFlowCompare,
    InstaFlowTriplets,
    InstaFlowLoadTriplets,
    InstaFlowReflow,
    InstaFlowDistill,
]


class InstaFlowExtension(ComfyExtension):
    """What the host asks for the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES

"""The nodes of the pack, listed by hand."""

from comfy_api.latest import ComfyExtension, io

from .analysis import InstaFlowStraightness
from .comparison import InstaFlowCompare
from .editing import InstaFlowControl, InstaFlowInvert
from .evaluation import InstaFlowEvaluate
from .live import InstaFlowLivePreview
from .loading import InstaFlowLoadCheckpoint, InstaFlowLoadUNet, InstaFlowModelSampling, InstaFlowSaveCheckpoint
from .merging import InstaFlowMergeDelta
from .noise import InstaFlowInterpolateNoise, InstaFlowSeedNoise
from .perflow import InstaFlowPeRFlow
from .sampling import InstaFlowSampler, InstaFlowScheduler
from .speed import InstaFlowAccelerate
from .training import InstaFlowDistill, InstaFlowReflow
from .triplets import InstaFlowLoadTriplets, InstaFlowTriplets

# Tools that read a pack without running it know its nodes by this name, each by its id, which is its class's name. The
# host asks the entry point.
NODE_CLASS_MAPPINGS: dict[str, type[io.ComfyNode]] = {
    node.__name__: node
    for node in [
        InstaFlowLoadCheckpoint,
        InstaFlowLoadUNet,
        InstaFlowModelSampling,
        InstaFlowSaveCheckpoint,
        InstaFlowMergeDelta,
        InstaFlowPeRFlow,
        InstaFlowAccelerate,
        InstaFlowSampler,
        InstaFlowScheduler,
        InstaFlowLivePreview,
        InstaFlowSeedNoise,
        InstaFlowInterpolateNoise,
        InstaFlowInvert,
        InstaFlowControl,
        InstaFlowStraightness,
        InstaFlowCompare,
        InstaFlowEvaluate,
        InstaFlowTriplets,
        InstaFlowLoadTriplets,
        InstaFlowReflow,
        InstaFlowDistill,
    ]
}


class InstaFlowExtension(ComfyExtension):
    """What the host asks for the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODE_CLASS_MAPPINGS.values())

"""Any module as a sequence of stages, found by running it once without memory."""

from lit_transfer.stages._maps import StageMap, stage_maps
from lit_transfer.stages._noted import noted
from lit_transfer.stages._record import first_tensor
from lit_transfer.stages._stage import Stage, Trace
from lit_transfer.stages._stages_of import stages_of
from lit_transfer.stages._trace import trace_stages
from lit_transfer.stages._units import place_axes

__all__ = [
    "Stage",
    "StageMap",
    "Trace",
    "first_tensor",
    "noted",
    "place_axes",
    "stage_maps",
    "stages_of",
    "trace_stages",
]

"""Any module as a sequence of stages, found by running it once without memory."""

from lit_transfer.stages._stage import Stage, Trace
from lit_transfer.stages._stages_of import stages_of
from lit_transfer.stages._trace import trace_stages

__all__ = ["Stage", "Trace", "stages_of", "trace_stages"]

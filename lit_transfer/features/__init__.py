"""Frozen work done once: features at a boundary of a backbone, stored, and served in the place of images."""

from lit_transfer.features._boundary import (
    Boundary,
    Outline,
    check_still,
    earlier,
    find_boundary,
    frozen_state,
    outline_of,
    run_until,
)
from lit_transfer.features._checked_copy import Fast, apart, bound_of, check_compiler, checked_copy
from lit_transfer.features._dataset import CachedSamples, find_image, split_sample
from lit_transfer.features._filling import Filling, prepare
from lit_transfer.features._fingerprint import UnknownContentError, fingerprint
from lit_transfer.features._heap import HeapTrimming
from lit_transfer.features._pieces import pieces
from lit_transfer.features._randomness import FirstDraw, is_random, probe
from lit_transfer.features._serving import Serving
from lit_transfer.features._standin import StandIn
from lit_transfer.features._store import Entry, Layout, cache_folder, list_entries, open_entry
from lit_transfer.features._working_copy import WorkingCopy

__all__ = [
    "Boundary",
    "CachedSamples",
    "Entry",
    "Fast",
    "Filling",
    "FirstDraw",
    "HeapTrimming",
    "Layout",
    "Outline",
    "Serving",
    "StandIn",
    "UnknownContentError",
    "WorkingCopy",
    "apart",
    "bound_of",
    "cache_folder",
    "check_compiler",
    "check_still",
    "checked_copy",
    "earlier",
    "find_boundary",
    "find_image",
    "fingerprint",
    "frozen_state",
    "is_random",
    "list_entries",
    "open_entry",
    "outline_of",
    "pieces",
    "prepare",
    "probe",
    "run_until",
    "split_sample",
]

"""Several runs and their table: cross-validation with out-of-fold answers, and the same training over seeds."""

from lit_transfer.runs._each import cross_validate, run_seeds
from lit_transfer.runs._summary import Summary

__all__ = ["Summary", "cross_validate", "run_seeds"]

"""Puts this folder on the path: tests and scripts share `kills`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

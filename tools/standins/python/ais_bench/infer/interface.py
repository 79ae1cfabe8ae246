"""STAND-IN for ``ais_bench.infer.interface``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from standin.infer_session import InferSession

__all__ = ["InferSession"]

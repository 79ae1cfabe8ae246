"""STAND-IN: ``python -m ais_bench``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from standin.ais_bench import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

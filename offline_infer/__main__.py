"""``python -m offline_infer``."""

import sys

from offline_infer.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""The command line with the engine for tests: ``python -m with_fake predict ... --engine fake`` in a process of its own."""

from __future__ import annotations

import sys

from offline_infer.cli import main
from offline_infer.engines import fake

if __name__ == "__main__":
    fake.register()
    sys.exit(main())

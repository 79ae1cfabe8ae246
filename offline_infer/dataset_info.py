"""Dataset info: a work folder (or a plain folder of bins) in, input lists for external tools out, whole and in shards.

Also a program of its own, with the arguments of the published script::

    python -m offline_infer.dataset_info bin DIR OUT.info 128 128

The work is done in :mod:`offline_infer.staging.lists`.
"""

from __future__ import annotations

import sys

from offline_infer.staging.lists import InfoFiles, main, write_info, write_plain_info

__all__ = ["InfoFiles", "main", "write_info", "write_plain_info"]

if __name__ == "__main__":
    sys.exit(main())

"""STAND-IN for ``acl`` (pyACL): a test double, not the vendor's. See tools/standins/README.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from standin.pyacl import (
    create_data_buffer,
    destroy_data_buffer,
    finalize,
    get_soc_name,
    init,
    mdl,
    rt,
    util,
)

__all__ = ["create_data_buffer", "destroy_data_buffer", "finalize", "get_soc_name", "init", "mdl", "rt", "util"]

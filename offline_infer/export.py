"""Export: a model folder of nnU-Net v1, UNet++ or nnU-Net v2 in, a verified bundle out.

The only stage that needs torch. The work is done in :mod:`offline_infer.exporting`.
"""

from __future__ import annotations

from offline_infer.checkpoints import Selection
from offline_infer.exporting.bundles import export_bundle, export_network
from offline_infer.exporting.options import ExportOptions

__all__ = ["ExportOptions", "Selection", "export_bundle", "export_network"]

"""Export: a model folder of nnU-Net v1, UNet++ or nnU-Net v2 in, a verified bundle out.

The only stage that needs torch. The work is done in :mod:`offline_infer.exporting`.
"""

from __future__ import annotations

from offline_infer.exporting.bundles import export_bundle, export_network

__all__ = ["export_bundle", "export_network"]

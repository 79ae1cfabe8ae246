"""nnU-Net's resampling functions: the same numbers, as separable banded operators.

``operators``  one axis as a small matrix          ``steps``  which axis gets which operator
``volumes``    images                              ``maps``      logits and probabilities, whole or slab by slab
``label_maps`` label maps (cascades)               ``blas``      one BLAS thread per worker

Arrays are (c, z, y, x) or (z, y, x); spacing is in mm in the same order.
"""

from offline_infer.resampling.label_maps import resample_labels
from offline_infer.resampling.maps import SlabResampler, resample_map
from offline_infer.resampling.steps import lowres_axis
from offline_infer.resampling.volumes import resample_image

__all__ = ["SlabResampler", "lowres_axis", "resample_image", "resample_labels", "resample_map"]

"""Checkpoints of mmdetection's detectors; of these, RefineMask's."""

"""Metrics, summaries and tables behind :mod:`offline_infer.proof.evaluation.label_maps`."""

"""Metrics, summaries and tables behind :mod:`offline_infer.evaluate`."""

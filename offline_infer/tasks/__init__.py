"""What differs between kinds of model: one folder each, and one line in :mod:`offline_infer.tasks.registry`."""

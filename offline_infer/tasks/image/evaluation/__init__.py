"""Soft masks and scores against references: measures, the protocols that name them, and the summary of a run."""

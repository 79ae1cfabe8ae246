"""From a torch network to a verified graph: tracing, the reference run and the comparison."""

"""From a torch network to a verified bundle: tracing, the reference run and the comparison."""

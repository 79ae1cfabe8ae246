"""INT8 for a bundle's graphs, kept only where whole unseen cases show that it is still the same model."""

"""What :mod:`offline_infer.proof.comparison.label_maps` looks at: where label maps differ, and by how narrow a margin."""

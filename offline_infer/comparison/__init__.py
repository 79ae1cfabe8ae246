"""What :mod:`offline_infer.compare` looks at: where label maps differ, and by how narrow a margin."""

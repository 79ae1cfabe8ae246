"""Model folders of nnU-Net v2: plans.json, dataset.json, and the network they describe."""

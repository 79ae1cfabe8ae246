"""Model folders of nnU-Net v1 and its UNet++ fork: plans, trainers, labels, and the network the weights show."""

"""Pictures of a segmentation."""

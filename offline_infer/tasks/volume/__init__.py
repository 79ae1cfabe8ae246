"""Volumes: an image is cut into tiles, their answers are averaged, and a label map comes out in the image's own grid."""

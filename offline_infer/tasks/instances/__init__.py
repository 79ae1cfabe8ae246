"""Detectors that give every object a box, a label and a mask."""

"""Convolutions with fewer multiplications, as a rewrite of an ``openvino.Model`` in ordinary operators: one-axis Winograd.

Along one axis, m neighbouring outputs of a kernel of three taps need only m + 2 products instead of 3 m. The graph is cut
along that axis into *planes*, each a tensor of its own, and stays cut through convolutions, norms, activations, sums and
concatenations, so that nothing is laid out anew between layers and what a few planes need stays in the processor's cache.
"""

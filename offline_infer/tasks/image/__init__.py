"""One image in, one soft mask and perhaps one score out: models that find regions in photographs.

``decoding`` and ``datasets`` read files, ``geometry`` and ``bilinear`` bring an image to the network's size and its
answer back, ``evaluation`` compares masks and scores with references. Arrays are (y, x) or (y, x, c); the network's
input is (1, c, y, x).
"""

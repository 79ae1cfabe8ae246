"""How much a checkpoint may ask for: every limit an untrusted file meets before memory or time is spent on it.

Published checkpoints stay below a hundredth of most of these. A file that exceeds one is refused by name.
"""

from __future__ import annotations

MAX_PICKLE_BYTES = 64 << 20
"""Longest pickle, storages aside: a checkpoint's pickle holds names and numbers."""
MAX_OPCODES = 2_000_000
"""Most steps of a pickle's program; a checkpoint with ten thousand tensors needs 400,000."""
MAX_DEPTH = 200
"""Deepest nesting of containers; checkpoints need about ten."""
MAX_OBJECTS = 5_000_000
"""Most objects in a pickle's tree, every shared part counted as often as it occurs, a string by its length."""
MAX_INTEGER_BITS = 128
"""Longest integer; printing or converting longer ones is slow or fails."""
MAX_UNUSUAL_KEYS = 2000
"""Most dictionary keys that are neither text nor ordinary integers: their hashes can be chosen to collide."""

MAX_JSON_BYTES = 32 << 20
"""Longest JSON file. A dataset.json that lists a hundred thousand cases has half of it."""
MAX_LITERAL = 10_000
"""Most characters of a Python literal that nnU-Net v1 stores as text."""
MAX_TEXT = 1000
"""Most characters of a name or another short text."""

MAX_DIRECTORY_BYTES = 4 << 20
"""Longest directory of a zip archive: about forty thousand members."""
MAX_SMALL_BYTES = 512 << 20
"""Largest member that is not a weights file."""
MAX_WEIGHT_BYTES = 32 << 30
"""Largest weights file."""
MAX_RATIO = 100
"""Most a large member may be compressed; weights hardly compress."""
MAX_TOTAL_RATIO = 20
"""Most all unpacked members together may exceed the archive, beyond :data:`SMALL_TOTAL`."""
SMALL_TOTAL = 256 << 20
"""What any archive may unpack to, however small it is."""

MAX_BROADCAST = 1 << 16
"""Most elements of a tensor that repeats the elements of a smaller storage."""
MAX_TENSOR_RATIO = 4
"""Most all tensors of a state dict together may exceed the file: bfloat16 becomes float32, some parameters are shared."""

MAX_CLASSES = 65_535
"""Most labels: a label map is uint16."""
MAX_CHANNELS = 1024
"""Most input channels."""
MAX_PATCH_VOXELS = 1 << 27
"""Largest patch (512 x 512 x 512); at float32 one channel of it takes half a gigabyte."""
MIN_SPACING, MAX_SPACING = 1e-9, 1e6
"""Target spacing in millimetres."""
MAX_STAGES = 64
"""Most entries of any list in a network's description."""
MAX_LAYERS = 2000
"""Most blocks or layers a network's description may ask for."""
MAX_FEATURES = 1 << 14
"""Largest number in a network's description, such as the features of a stage."""
MAX_WIDTH_SQUARED_LAYERS = 1 << 28
"""Largest square of that number times the number of layers, which bounds the number of weights but for a factor."""
MAX_EXCESS = 1.5
"""How many times more parameters than its checkpoint a network may have; frameworks store some of them twice."""
SMALL_NETWORK = 1 << 20
"""Parameters any network may have."""

"""How long the Ascend tools may take, for the library and the command line alike."""

COMPILE_TIMEOUT_S = 4 * 3600.0
"""``atc``, per graph: large networks on slow hosts take more than an hour."""
STALL_TIMEOUT_S = 600.0
"""A session that produces no output and prints nothing for this long is ended."""

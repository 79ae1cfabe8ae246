"""STAND-INS for the Ascend tools: test doubles, not the vendor's programs. See ``tools/standins/README.md``."""

BANNER = "(stand-in: a test double without hardware, not the vendor's program)"


def words(text: str) -> tuple[str, ...]:
    """The words of a text: a readable way to write a long list of names."""
    return tuple(text.split())

"""Chip names as ``atc --soc_version`` takes them, and the rules that hang on them."""

from __future__ import annotations

import difflib
import re

from offline_infer.errors import UsageError

SOCS: tuple[str, ...] = (
    "Ascend310",
    "Ascend310P1",
    "Ascend310P3",
    "Ascend310B1",
    "Ascend310B4",
    "Ascend910A",
    "Ascend910B1",
    "Ascend910B2",
    "Ascend910B2C",
    "Ascend910B3",
    "Ascend910B4",
    "Ascend910ProA",
    "Ascend910ProB",
)
"""Names seen in vendor material; those of the first training chips (910A, 910Pro) are unconfirmed.

``Ascend910B`` alone is no chip: npu-smi shows it with a number, and ``atc`` refuses it without.
"""

_SPELLING = re.compile(r"[A-Za-z][A-Za-z0-9_]{2,39}")


def check_soc(soc: str, *, allow_unlisted: bool = False) -> str:
    """The name, if it is one ``atc`` can be given.

    Args:
        soc: exact name, ``Ascend`` + the Name column of ``npu-smi info``.
        allow_unlisted: accept any well-formed name, for chips newer than this list.

    Raises:
        UsageError: unknown name; the message lists the legal ones and the nearest.
    """
    if soc in SOCS:
        return soc
    if allow_unlisted:
        if _SPELLING.fullmatch(soc):
            return soc
        raise UsageError(f"{soc!r} cannot be a chip name: letters, digits and '_' only, beginning with a letter")
    near = _nearest(soc)
    hint = f"did you mean {near}? " if near else ""
    raise UsageError(
        f"unknown soc {soc!r}; {hint}legal names: {', '.join(SOCS)}. It is 'Ascend' + the Name column of "
        "'npu-smi info'",
        remedy="allow-unlisted-chip",
    )


def _nearest(soc: str) -> str | None:
    by_key = {name.lower(): name for name in SOCS}
    key = soc.lower().replace(" ", "").replace("-", "").replace("_", "")
    if not key.startswith("ascend"):
        key = "ascend" + key
    key = key.replace("ascend710", "ascend310p3")  # an early alias of the 310P
    if key in by_key:
        return by_key[key]
    found = difflib.get_close_matches(key, by_key, n=1, cutoff=0.8)
    return by_key[found[0]] if found else None

"""Small questions of step 12: where the OM and the graph of a bundle are, and what the tool's figures say.

performance.py om BUNDLE SOC         path of the OM
performance.py onnx BUNDLE           path of the graph, and the shape of its input
performance.py show FOLDER SOC TOOL  the figures in a folder of the tool's performance files
performance.py baseline FILE         the average in a record of onnx_infer.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from offline_infer.ascend.figures import read_folder
from offline_infer.bundles.bundle import Bundle


def main(question: str, place: Path, *rest: str) -> str:
    """The answer, one line."""
    if question == "show":
        soc, tool = rest
        # msame does not say whether it read data; its figures are the network's alone either way.
        return read_folder(place, soc, kind="dataset" if tool == "msame" else "pure").to_text()
    if question == "baseline":
        record = json.loads(place.read_text(encoding="utf-8"))
        return f"Average time spent: {record['average_s']:.4g}s on {record['provider']}"
    bundle = Bundle.load(place)
    if question == "om":
        return str(
            next(bundle.compiled_path(record) for record in bundle.spec.compiled if record.soc == rest[0]).resolve()
        )
    shape = ",".join(map(str, bundle.spec.input_shape))
    return f"{bundle.graph_path(bundle.folds[0])} {shape}"


if __name__ == "__main__":
    print(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))

"""Make the bundle that is shipped beside the demonstration's checkpoint: ``python tools/make_demo_bundle.py``.

To be run again whenever the checkpoint or the bundle's schema changes; a test compares the two.
"""

from __future__ import annotations

from offline_infer.demo.run import demo_bundle, demo_checkpoint
from offline_infer.exporting.bundles import export_bundle


def main() -> None:
    bundle = export_bundle(demo_checkpoint(), demo_bundle(), overwrite=True)
    print(f"{bundle.folder}: {', '.join(graph.file for graph in bundle.spec.graphs)}")


if __name__ == "__main__":
    main()

"""STAND-IN for the ``ais_bench`` package: a test double, not the vendor's. See tools/standins/README.md."""

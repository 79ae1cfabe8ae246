"""STAND-IN for ``ais_bench.infer``: a test double, not the vendor's."""

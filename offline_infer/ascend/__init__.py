"""The Ascend route: compile a graph to an OM, find devices, run the vendor's tools, understand their errors.

Nothing here needs an Ascend package: the tools are separate programs, started with argument lists. What is known of
them - and that none of it was run on hardware - stands in ``docs/ascend.md``.
"""

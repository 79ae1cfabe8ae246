"""The folder of a staged run, its manifests, and folders made by the published Ascend scripts."""

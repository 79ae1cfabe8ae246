"""A kind of model the package knows nothing about: it names the class of a one-dimensional signal.

The proof that a task is one folder and one line of the registry.
"""

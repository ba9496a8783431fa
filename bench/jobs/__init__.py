"""Whole training jobs of the `training` suite: a file each, with a ``build(peer)``."""

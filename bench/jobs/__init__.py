"""Training jobs of the `training` suite, one module each with a ``build(peer)``."""

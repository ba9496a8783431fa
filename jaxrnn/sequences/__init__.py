"""Sequence packing, streaming and episodes."""

"""The pointwise part of a cell, unit by unit: its graph, its derivative, what is saved for that."""

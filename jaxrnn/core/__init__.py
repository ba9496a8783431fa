"""The pure core, without Flax: a stack of layers, the recurrence, masks, states and parameters."""

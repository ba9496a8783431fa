"""Elementwise cell steps: traced to a graph, differentiated with few residuals, lowered to kernels.

A step is elementwise if hidden unit k of its results depends on unit k of its arguments alone.

- `trace`: the step of one hidden unit as a graph of scalar operations.
- `residuals`: the derivative rule of a step, and a min-cut that picks its residuals.
- `lower`: the forward and backward graphs of a cell, as the kernels use them.
"""

"""A strict environment: double precision on, no silent rank promotion, no display."""

import os

os.environ.setdefault("MPLBACKEND", "agg")

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

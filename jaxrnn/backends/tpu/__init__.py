"""backends/tpu."""

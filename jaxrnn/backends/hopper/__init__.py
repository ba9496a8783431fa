"""backends/hopper."""

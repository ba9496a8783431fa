"""Backends: the functions that execute the loop over time.

=============================  ====================================================================
`jaxrnn.backends.select`       which backend a call uses, and why
`jaxrnn.backends.scan`         the scan and the associative scan, on every platform
`jaxrnn.backends.primitives`   JAX primitives defined by the scan, which may have kernels
`jaxrnn.backends.cpu`          kernels for CPUs, compiled by LLVM
`jaxrnn.backends.hopper`       kernels for Hopper GPUs, in Pallas
`jaxrnn.backends.tpu`          kernels for TPUs, in Pallas
`jaxrnn.backends.elementwise`  the graph of a cell's step, its derivative and its residuals
=============================  ====================================================================
"""

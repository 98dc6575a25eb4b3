"""Kernels: pure functions on tensors, one module per idea. `protocols` says how they are called.

The numeric law. The same inputs give the same bytes whatever the block size, the number of threads and the device, so
that one cache serves all of them. Hence: a pointwise pass is made of individually rounded operations in the compute
dtype (float32; float64 for float64 inputs), one per torch call; a product is never fused with an addition unless the
product is exact, when fusing cannot show; there is no matmul, no reduction whose order a library may choose. A sum is
taken lane by lane in float64 (`sums`), an order statistic is exact (`order_statistics`), and a coefficient is computed
in float64 from those and rounded once to the compute dtype.

Memory. Fresh memory costs more than arithmetic (docs/performance.md), so kernels write to `out` and to the scratch
buffers they are given, and allocate only what is small.
"""

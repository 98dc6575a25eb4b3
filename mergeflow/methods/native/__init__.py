"""The CPU's own kernels, compiled from C: the same bytes as the torch kernels, without torch.

Optional. Where the library could not be built, or an operation or dtype is not among those it has, the torch kernels
compute instead, and nothing about a result shows which of them did.
"""

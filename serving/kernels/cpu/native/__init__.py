"""Kernels in C for float32 on CPUs, compiled where they run. `library.load()` is None where that is not possible, and
everything then works on torch's operators, which are their twins.
"""

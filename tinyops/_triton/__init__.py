"""Triton kernels of the regular operators: the GPU side where no CUDA binary was built."""

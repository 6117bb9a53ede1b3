"""CUDA C++ kernels of the selective scan, compiled at first use by NVRTC."""

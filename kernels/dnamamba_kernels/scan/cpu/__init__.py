"""CPU versions: the scan compiled on the user's machine by numba (imported at first use), the rest plain PyTorch."""

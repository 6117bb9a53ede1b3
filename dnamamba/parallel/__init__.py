"""What the ranks of a run share: windows, the positions of a window, weights and gradients.

A step knows none of them by name.
"""

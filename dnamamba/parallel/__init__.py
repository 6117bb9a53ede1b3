"""How the ranks of a run share its work: windows, and the positions of a window. A step knows none of them by name."""

"""Mamba language models on DNA: genomes in, likelihoods, variants and species out."""

__version__ = "0.1.0"

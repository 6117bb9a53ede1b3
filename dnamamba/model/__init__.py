"""Models of DNA, from configuration to checkpoint.

`config` sizes and presets (torch-free) · `mixers/` sequence mixers with states in and out · `blocks` the pre-norm
residual block · `language_model` the whole model · `loss` likelihood of the next base · `tokens` batches on the
device · `parameters` weight-decay groups and counts · `checkpoint` folders of safetensors and JSON · `kernels` what
others may ask about the kernels.

This file imports nothing, so that reading a configuration does not load torch.
"""

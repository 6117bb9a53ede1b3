"""Models of DNA.

`config` sizes and presets, `settings` their flags (torch-free) · `mixers/` sequence mixers with states in and out ·
`blocks` the pre-norm residual block · `language_model` the whole model · `objectives/` what it is trained to predict ·
`abilities` what verbs may need of it · `loss` likelihood of a base · `tokens` batches on the device · `strands` the
mean of both strands · `parameters` weight-decay groups and counts · `kernels` what others may know about the kernels.

This file imports nothing, so that reading a configuration does not load torch.
"""

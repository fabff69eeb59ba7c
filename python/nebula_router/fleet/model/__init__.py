"""What a model needs of a GPU.

=============  ==========================================================================
`shape`        layers and weights by a `config.json`, or by a name
`vram`         weights + KV cache + overhead against what a GPU has, with the arithmetic
`model_files`  where a model's files are on this machine
`sizing`       all of it for a pool
=============  ==========================================================================
"""

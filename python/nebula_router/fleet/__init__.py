"""The fleet: what is stored of it, who owns a machine's GPUs, who places models, who tells the gateways.

=================  =====================================================================================
`records`          what is stored, and under which keys
`store`            the store's few operations; `memory` and `etcd` are its two backends; `follow` keeps a view of it
`gpu`, `node`      a machine's GPUs; the daemon that runs engines on them
`vram`, `plan`     what a model needs; models x nodes -> placements, with reasons
`scheduler`        writes placements and keeps them true
`discovery`        from the store to a gateway's engines
`operations`       what people ask of a fleet: status, scale, drain, unload
=================  =====================================================================================
"""

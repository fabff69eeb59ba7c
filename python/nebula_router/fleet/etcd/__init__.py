"""The store in etcd. All of its I/O is on a thread of its own, whatever becomes of the caller's event loop.

=========  ================================================================
`store`    the operations as the caller's event loop sees them
`feed`     what a watch brings, on its way to the caller's event loop
`thread`   the event loop of the I/O, in its thread
`client`   questions, and the watch over a connection that has watches
`link`     one connection; what its errors mean
`links`    which endpoint is asked
`leases`   what a key's life hangs on
`rpc`      etcd's protocol
=========  ================================================================
"""

from nebula_router.fleet.etcd.store import EtcdStore

__all__ = ["EtcdStore"]

"""etcd's protocol as the package etcd3 has it.

What etcd3 generated from it is older than protobuf 4, which runs such code in its pure-Python mode alone: one for the
whole process, twenty times slower, and refused where anything in it has imported protobuf before. So that code is read,
not run: for the descriptors in it, of which messages and methods are made in a pool of their own.
"""

from __future__ import annotations

import os
import re
from ast import literal_eval
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

__all__ = ["grpc", "message", "methods"]

_FORKS: Final = "GRPC_ENABLE_FORK_SUPPORT"
_FILES: Final = ("kv", "auth", "rpc")
_PACKAGE: Final = "etcdserverpb"
_DESCRIPTOR: Final = re.compile(r"serialized_pb=_b\(('(?:[^'\\]|\\.)*')\)")
"""A file's descriptor in what was generated from it, as a literal with a character for each byte."""


def _grpc() -> object:
    """The package grpc without its handlers of forks, which write to stderr for each process that uvloop starts.

    They serve a forked process that goes on with gRPC, which a store refuses. gRPC looks at the setting when it is
    imported; whoever has made it is heard.
    """
    given = os.environ.get(_FORKS)
    os.environ.setdefault(_FORKS, "0")
    try:
        import_module("grpc.aio")
        return import_module("grpc")
    finally:
        if given is None:
            del os.environ[_FORKS]


if TYPE_CHECKING:
    import grpc
    import grpc.aio
else:
    grpc = _grpc()


def _pool() -> DescriptorPool:
    spec = find_spec("etcd3")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("the store in etcd needs the package etcd3: pip install 'etcd3>=0.12,<0.13'")
    pool = DescriptorPool()
    for name in _FILES:
        generated = Path(spec.submodule_search_locations[0], "etcdrpc", f"{name}_pb2.py")
        found = _DESCRIPTOR.search(generated.read_text(encoding="utf-8"))
        if found is None:
            raise ImportError(f"{generated} is not of the etcd3 0.12 that this was written for: it has no descriptor")
        pool.AddSerializedFile(str(literal_eval(found[1])).encode("latin-1"))
    return pool


# Here, so that no event loop waits for it.
_POOL: Final = _pool()


@cache
def message(name: str) -> Any:  # noqa: ANN401 - made at run time
    """The class of a message, by its name in etcd's `rpc.proto`."""
    return GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


def methods(channel: grpc.aio.Channel, service: str) -> dict[str, Any]:
    """What can be called of a service over a channel, by name."""
    makers = {(False, False): channel.unary_unary, (True, True): channel.stream_stream}
    return {
        method.name: makers[method.client_streaming, method.server_streaming](
            f"/{_PACKAGE}.{service}/{method.name}",
            request_serializer=message(method.input_type.name).SerializeToString,
            response_deserializer=message(method.output_type.name).FromString,
        )
        for method in _POOL.FindServiceByName(f"{_PACKAGE}.{service}").methods
    }

"""etcd, shared or of a test's own, and clients of either backend."""

from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from typing import Any, Protocol

import pytest
from tests.fleet.etcd import Etcd

from nebula_router.fleet.etcd import EtcdStore
from nebula_router.fleet.memory import MemoryStore
from nebula_router.fleet.store import Store

_prefixes = count(1)


class OpenEtcd(Protocol):
    """Opens a client of the test's own etcd; it is closed with the test."""

    def __call__(self, *, at: Etcd | None = None, **settings: Any) -> EtcdStore: ...


class Clients(Protocol):
    """Opens clients of the same data."""

    def __call__(self) -> Store: ...


@pytest.fixture(scope="session")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """For tests that do it no harm."""
    etcd = Etcd(tmp_path_factory.mktemp("etcd")).start()
    yield etcd
    etcd.kill()


@pytest.fixture
def make_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Etcd]]:
    """Makes an etcd of the test's own, which is not started."""
    made: list[Etcd] = []

    def make(*extra: str, scheme: str = "http") -> Etcd:
        made.append(Etcd(tmp_path_factory.mktemp("etcd"), *extra, scheme=scheme))
        return made[-1]

    yield make
    for etcd in made:
        etcd.kill()


@pytest.fixture
def etcd(make_etcd: Callable[..., Etcd]) -> Etcd:
    """One of the test's own."""
    return make_etcd().start()


@pytest.fixture
async def open_etcd(shared_etcd: Etcd) -> AsyncIterator[OpenEtcd]:
    opened: list[EtcdStore] = []

    def open_one(*, at: Etcd | None = None, **settings: Any) -> EtcdStore:
        opened.append(EtcdStore((at or shared_etcd).settings(**settings)))
        return opened[-1]

    yield open_one
    for store in opened:
        await store.close()


@pytest.fixture(params=["memory", "etcd"])
async def clients(request: pytest.FixtureRequest) -> AsyncIterator[Clients]:
    """Of data that is empty."""
    opened: list[Store] = []
    if request.param == "memory":
        first = MemoryStore()

        def client() -> Store:
            opened.append(MemoryStore(beside=first))
            return opened[-1]

    else:
        settings = request.getfixturevalue("shared_etcd").settings(etcd_prefix=f"/test-{next(_prefixes)}")

        def client() -> Store:
            opened.append(EtcdStore(settings))
            return opened[-1]

    yield client
    for store in opened:
        await store.close()

"""Which etcd is asked, by whom, and for which keys."""

import asyncio
import logging
import socket
import subprocess
from collections.abc import Callable
from contextlib import aclosing

import pytest
from tests.e2e.process import free_port
from tests.fleet.conftest import OpenEtcd
from tests.fleet.etcd import Etcd
from tests.fleet.test_etcd import answers
from tests.fleet.test_store import seen
from tests.gateway.wait import until

from nebula_router.fleet.etcd import client
from nebula_router.fleet.store import StoreDownError, StoreError, WatchLostError

pytestmark = pytest.mark.anyio

WITHIN_S = 20.0
TTL_S = 2.0
MakeEtcd = Callable[..., Etcd]


async def test_prefixes_are_worlds_of_their_own(shared_etcd: Etcd, open_etcd: OpenEtcd) -> None:
    one, two, bare = open_etcd(etcd_prefix="/w"), open_etcd(etcd_prefix="/w2"), open_etcd(etcd_prefix="")
    first = await one.put("/a", b"1")
    await two.put("/a", b"2")
    assert shared_etcd.ctl("get", "--prefix", "/w").split() == ["/w/a", "1", "/w2/a", "2"]
    assert list((await one.list("")).entries) == ["/a"]
    assert await bare.get("/w2/a") is not None
    async with aclosing(one.watch("", first)) as watch:
        await two.delete("/a")
        await one.delete("/a")
        assert [change.key for change in await seen(watch, 1)] == ["/a"]


async def test_a_foreign_key_that_is_no_text_hurts_nobody(shared_etcd: Etcd, open_etcd: OpenEtcd) -> None:
    store = open_etcd(etcd_prefix="/foreign")
    shared_etcd.ctl("put", b"/foreign/\xff\xfe".decode(errors="surrogateescape"), "1")
    (key,) = (await store.list("")).entries
    assert await store.delete(key)


async def test_endpoints_that_are_dead_or_silent_are_passed_over(etcd: Etcd, open_etcd: OpenEtcd) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        dead = f"http://127.0.0.1:{free_port()}"
        mute = f"http://127.0.0.1:{silent.getsockname()[1]}"
        store = open_etcd(at=etcd, etcd_endpoints=[dead, mute, etcd.url], timeout_s=3.0)
        assert await store.put("/a", b"1")
        await store.close()
        lost = open_etcd(etcd_endpoints=[dead, mute], timeout_s=0.4)
        with pytest.raises(StoreDownError) as error:
            await lost.get("/a")
        assert dead in str(error.value)
        assert mute in str(error.value)


async def test_a_fleet_outlives_one_member_of_etcd(
    make_etcd: MakeEtcd, open_etcd: OpenEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PROBE_S", 0.1)
    members = [make_etcd() for _ in range(3)]
    cluster = ",".join(f"m{i}={member.peer}" for i, member in enumerate(members))
    for i, member in enumerate(members):
        member.extra = ("--name", f"m{i}", "--initial-cluster", cluster)
        member.launch()
    for member in members:
        member.await_ready()
    urls = [member.url for member in members]
    stores = [open_etcd(etcd_endpoints=urls[i:] + urls[:i], etcd_prefix="/cluster", timeout_s=1.0) for i in range(3)]
    revision = await stores[0].put("/a", b"1", 10.0)
    watching = asyncio.create_task(seen(stores[0].watch("/", revision), 1))
    assert [await store.get("/a") for store in stores] == [("/a", b"1", revision)] * 3
    members[0].freeze()
    with pytest.raises(WatchLostError):
        await watching

    async def put() -> bool:
        try:
            await asyncio.gather(*(store.put("/a", b"2", 10.0) for store in stores))
        except StoreDownError:
            return False
        return True

    await until("all to be served by the others", put)


async def test_who_asks_is_known_by_name_and_password(
    etcd: Etcd, open_etcd: OpenEtcd, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="nebula_router")
    admin, password = "root:rootpw", "sesame-42"
    etcd.ctl("user", "add", admin)
    etcd.ctl("user", "grant-role", "root", "root")
    etcd.ctl("user", "add", f"nebula:{password}")
    etcd.ctl("role", "add", "nebula")
    etcd.ctl("role", "grant-permission", "nebula", "--prefix=true", "readwrite", "/nebula/")
    etcd.ctl("user", "grant-role", "nebula", "nebula")
    etcd.ctl("auth", "enable")
    login = {"etcd_user": "nebula", "etcd_password": password}

    store = open_etcd(at=etcd, **login)
    revision = await store.put("/a", b"1", TTL_S)
    async with aclosing(store.watch("/", revision - 1)) as watch:
        assert len(await seen(watch, 1)) == 1
        # A new password, though it be the same, ends all tokens of the user.
        etcd.ctl("user", "passwd", "nebula", "--interactive=false", user=admin, given=password)
        assert await store.get("/a") == ("/a", b"1", revision)
        await store.put("/a", b"2", TTL_S)
        assert len(await seen(watch, 1)) == 1
    texts = []
    for wrong in ({}, {**login, "etcd_password": "guess-43"}, {**login, "etcd_prefix": "/secret"}):
        with pytest.raises(StoreError) as error:
            await open_etcd(at=etcd, **wrong).get("/a")
        assert not isinstance(error.value, StoreDownError)
        texts.append(str(error.value))
    assert "it may want etcd_user and etcd_password" in texts[0]
    assert "check etcd_password" in texts[1]
    assert "user 'nebula' needs a role with the keys under etcd_prefix" in texts[2]
    etcd.stop()
    etcd.start()
    await until("the store to answer", lambda: answers(store))
    for secret in (password, "guess-43"):
        assert secret not in caplog.text + "".join(texts)


async def test_tls_on_both_sides(
    make_etcd: MakeEtcd, open_etcd: OpenEtcd, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True, timeout=WITHIN_S)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority", "-days", "2")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    for name in ("etcd", "store"):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signed)
    files = {part: str(folder / part) for part in ("ca.pem", "store.pem", "store.key", "etcd.pem", "etcd.key")}
    etcd = make_etcd(
        *("--cert-file", files["etcd.pem"], "--key-file", files["etcd.key"]),
        *("--client-cert-auth", "--trusted-ca-file", files["ca.pem"]),
        scheme="https",
    ).start()
    ca = {"etcd_ca_file": files["ca.pem"]}
    own = {"etcd_cert_file": files["store.pem"], "etcd_key_file": files["store.key"]}
    assert await open_etcd(at=etcd, **ca, **own).put("/a", b"1", TTL_S)
    for lacking in (ca, own):
        with pytest.raises(StoreDownError, match=etcd.url):
            await open_etcd(at=etcd, **lacking, timeout_s=1.0).get("/a")
    with pytest.raises(StoreError, match=r"etcd_key_file: .*nowhere.* cannot be read: No such file"):
        await open_etcd(at=etcd, **ca, **own | {"etcd_key_file": str(folder / "nowhere")}).get("/a")

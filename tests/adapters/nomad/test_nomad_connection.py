"""Addresses, tokens and TLS, against real sockets and a certificate authority made for the test."""

import asyncio
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.adapters.nomad.agent import Agent, running_agent
from worker.adapters.nomad.client import NomadClient
from worker.adapters.nomad.connection import NomadConnection, NomadOptions
from worker.adapters.nomad.token import TokenSource
from worker.core.model import Place
from worker.errors import NomadDenied, NomadUnavailable, SettingsInvalid

pytestmark = pytest.mark.anyio

LEADER = '"127.0.0.1:4647"'
SECRET = "5ec2e700-dead-beef-0000-000000000001"
RENEWED = "5ec2e700-dead-beef-0000-000000000002"


# Addresses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("http://127.0.0.1:4646", "http://127.0.0.1:4646/v1/x"),
        ("http://nomad.example:80/", "http://nomad.example:80/v1/x"),
        ("https://[::1]:4646", "https://[::1]:4646/v1/x"),
        ("https://proxy.example/nomad/", "https://proxy.example/nomad/v1/x"),
        ("unix:///run/nomad/api.sock", "http://localhost/v1/x"),
    ],
)
def test_an_address_gives_the_base_of_every_url(address: str, url: str) -> None:
    connection = NomadConnection(NomadOptions(address=address))

    assert connection.url("/v1/x", ()) == url


@pytest.mark.parametrize(
    "address",
    [
        "",
        "127.0.0.1:4646",
        "nomad.example",
        "ftp://x",
        "http://",
        "http://x:port",
        "http://x:99999",
        "http://user:hunter2@x:4646",
        "http://x/?token=hunter2",
        "unix://relative",
        "unix:///",
    ],
)
def test_an_address_that_cannot_be_used_is_refused_at_the_start(address: str) -> None:
    with pytest.raises(SettingsInvalid, match="NOMAD_ADDR") as caught:
        NomadConnection(NomadOptions(address=address))

    assert "hunter2" not in str(caught.value)


async def test_a_unix_socket_is_reached(tmp_path: Path) -> None:
    async with running_agent(unix=tmp_path / "api.sock") as agent:
        agent.answers(text=LEADER)

        async with NomadClient(NomadOptions(address=agent.address)) as nomad:
            assert await nomad.leader() == "127.0.0.1:4647"


async def test_a_unix_socket_that_is_not_there_means_nothing_was_sent(tmp_path: Path) -> None:
    async with NomadClient(NomadOptions(address=f"unix://{tmp_path}/gone.sock")) as nomad:
        with pytest.raises(NomadUnavailable) as caught:
            await nomad.leader()

    assert not caught.value.maybe_applied


async def test_proxies_of_the_environment_are_not_used(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    agent.answers(text=LEADER)

    async with NomadClient(NomadOptions(address=agent.address)) as nomad:
        assert await nomad.leader() == "127.0.0.1:4647"


# Tokens -------------------------------------------------------------------------------------------


class Seconds:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(f"{SECRET}\n")
    return file


def test_a_renewed_token_file_is_read_within_a_second_and_not_looked_at_more_often(file: Path) -> None:
    seconds = Seconds()
    source = TokenSource(file=file, monotonic=seconds)
    assert source.current() == SECRET

    file.write_text(RENEWED)
    seconds.now = 0.9
    assert source.current() == SECRET
    seconds.now = 1.1
    assert source.current() == RENEWED


def test_a_file_replaced_by_one_of_the_same_age_and_size_is_noticed(file: Path, tmp_path: Path) -> None:
    seconds = Seconds()
    source = TokenSource(file=file, monotonic=seconds)
    status = file.stat()

    successor = tmp_path / "new"
    successor.write_text(f"{RENEWED}\n")
    os.utime(successor, ns=(status.st_atime_ns, status.st_mtime_ns))
    successor.replace(file)
    seconds.now = 2.0

    assert source.current() == RENEWED


def test_a_refused_token_is_read_again_at_once(file: Path) -> None:
    source = TokenSource(file=file, monotonic=Seconds())

    file.write_text(RENEWED)
    source.refused()

    assert source.current() == RENEWED


@pytest.mark.parametrize("damage", ["gone", "empty", "binary"])
def test_a_token_file_that_is_damaged_later_leaves_the_last_token_and_a_warning(
    file: Path, damage: str, log_lines: list[MutableMapping[str, Any]]
) -> None:
    source = TokenSource(file=file, monotonic=Seconds())
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(b"" if damage == "empty" else b"\xff\x00" + SECRET.encode())
    source.refused()

    assert source.current() == SECRET

    assert [line["event"] for line in log_lines] == ["nomad.token_unreadable"]
    assert SECRET not in str(log_lines)


@pytest.mark.parametrize("content", [None, b"", b"  \n", b"two\nlines", b"\xff"])
def test_a_token_file_that_is_no_good_at_the_start_is_a_settings_error(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(SettingsInvalid, match="NOMAD_TOKEN_FILE"):
        TokenSource(file=file)


def test_a_token_with_a_line_break_is_refused_without_showing_it() -> None:
    with pytest.raises(SettingsInvalid) as caught:
        TokenSource("hunter2\r\nX-Evil: 1")

    assert "hunter2" not in str(caught.value)
    assert SECRET not in repr(TokenSource(SECRET))


async def test_after_a_403_the_next_request_carries_the_renewed_token(agent: Agent, file: Path) -> None:
    options = NomadOptions(address=agent.address, token="ignored", token_file=file)
    async with NomadClient(options) as nomad:
        agent.answers(403, "Permission denied")
        await asyncio.to_thread(file.write_text, RENEWED)
        with pytest.raises(NomadDenied):
            await nomad.leader()

        agent.answers(text=LEADER)
        await nomad.leader()

    assert [asked.headers["X-Nomad-Token"] for asked in agent.asked] == [SECRET, RENEWED]


# TLS ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Authority:
    """A certificate authority with a server certificate for `server.global.nomad` and a client's."""

    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def server(self, *, mutual: bool = False) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "server.pem", self.folder / "server.key")
        if mutual:
            context.load_verify_locations(self.ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authority]:
    if not shutil.which("openssl"):
        pytest.skip("no openssl on PATH")
    folder = tmp_path_factory.mktemp("authority")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        folder,
        "req",
        "-x509",
        *key,
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
        "-days",
        "2",
        "-subj",
        "/CN=test ca",
    )
    for name, alternative in (("server", "DNS:server.global.nomad"), ("client", "DNS:client.global.nomad")):
        (folder / f"{name}.ext").write_text(f"subjectAltName={alternative}\n")
        openssl(folder, "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
        openssl(
            folder,
            *("x509", "-req", "-in", f"{name}.csr", "-extfile", f"{name}.ext", "-out", f"{name}.pem"),
            *signing,
        )
    yield Authority(folder)
    shutil.rmtree(folder)


async def leader_of(options: NomadOptions) -> str:
    async with NomadClient(options) as nomad:
        return await nomad.leader()


async def test_the_agents_certificate_is_checked_for_authority_and_name(authority: Authority) -> None:
    async with running_agent(tls=authority.server()) as agent:
        agent.answers(text=LEADER)
        good = NomadOptions(
            address=agent.address, ca_cert=authority.ca, tls_server_name="server.global.nomad"
        )

        assert await leader_of(good) == "127.0.0.1:4647"
        assert await leader_of(replace(good, ca_cert=None, tls_server_name="", skip_verify=True))
        for bad in (replace(good, ca_cert=None), replace(good, tls_server_name="")):
            with pytest.raises(NomadUnavailable, match="certificate verify failed") as caught:
                await leader_of(bad)
            assert not caught.value.maybe_applied

    assert len(agent.asked) == 2


async def test_an_event_stream_uses_the_same_tls_settings(authority: Authority) -> None:
    async with running_agent(tls=authority.server()) as agent:
        agent.answers(403, "Permission denied")
        good = NomadOptions(
            address=agent.address, ca_cert=authority.ca, tls_server_name="server.global.nomad"
        )
        async with NomadClient(good) as nomad:
            with pytest.raises(NomadDenied):
                await anext(nomad.events(Place("", ""), 0, bool))


async def test_a_folder_of_authorities_works_without_openssls_hashed_names(
    authority: Authority, tmp_path: Path
) -> None:
    shutil.copy(authority.ca, tmp_path / "company.crt")
    async with running_agent(tls=authority.server()) as agent:
        agent.answers(text=LEADER)

        assert await leader_of(
            NomadOptions(address=agent.address, ca_path=tmp_path, tls_server_name="server.global.nomad")
        )


async def test_mutual_tls_needs_the_client_certificate(authority: Authority) -> None:
    async with running_agent(tls=authority.server(mutual=True)) as agent:
        agent.answers(text=LEADER)
        without = NomadOptions(
            address=agent.address, ca_cert=authority.ca, tls_server_name="server.global.nomad"
        )
        with pytest.raises(NomadUnavailable):
            await leader_of(without)

        assert await leader_of(
            replace(
                without,
                client_cert=authority.folder / "client.pem",
                client_key=authority.folder / "client.key",
            )
        )

    assert len(agent.asked) == 1


def test_tls_files_that_cannot_be_used_are_settings_errors(authority: Authority, tmp_path: Path) -> None:
    https = NomadOptions(address="https://127.0.0.1:4646")
    empty = tmp_path / "empty"
    empty.mkdir()
    certificate, key = authority.folder / "client.pem", authority.folder / "server.key"

    for options, setting in (
        (replace(https, ca_cert=tmp_path / "none.pem"), "NOMAD_CACERT"),
        (replace(https, ca_cert=authority.folder / "ca.key"), "NOMAD_CACERT"),
        (replace(https, ca_path=empty), "NOMAD_CAPATH"),
        (replace(https, client_cert=certificate), "NOMAD_CLIENT_KEY"),
        (replace(https, client_cert=certificate, client_key=key), "NOMAD_CLIENT_KEY"),
    ):
        with pytest.raises(SettingsInvalid, match=setting):
            NomadConnection(options)

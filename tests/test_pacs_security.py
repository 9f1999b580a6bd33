"""Who may call: tokens, secrets, allow-lists, the rule on open ports, and TLS between real sockets."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest
import trustme

from hemolens.config import from_mapping
from hemolens.errors import ConfigError
from hemolens.pacs.security import (
    AllowList,
    TlsClient,
    TlsServer,
    TokenSet,
    check_dicom_port,
    check_http_port,
    client_context,
    is_loopback,
    read_secret,
    read_tokens,
    server_context,
)

GOOD = "kq3x-7Yw2_mN8vB4tR6zL0pS5"
OTHER = "Zf9c-1Hd6_jK3gQ8wE2uX7aV4"


def secret_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "secret"
    path.write_text(text, "utf-8")
    path.chmod(mode)
    return path


def test_tokens_of_a_file_are_taken_and_others_are_not(tmp_path: Path) -> None:
    tokens = read_tokens(secret_file(tmp_path, f"# the worklist screen\n{GOOD}\n\n  {OTHER}  \n"))
    assert len(tokens) == 2
    assert tokens.accepts(GOOD)
    assert tokens.accepts(OTHER)
    assert not tokens.accepts(GOOD[:-1])
    assert not tokens.accepts("")
    assert not tokens.accepts("# the worklist screen")
    assert GOOD not in repr(tokens) + str(vars(tokens))


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        (f"Bearer {GOOD}", True),
        (f"bearer  {GOOD}", True),
        (f"Basic {GOOD}", False),
        (GOOD, False),
        ("Bearer", False),
        ("", False),
        (None, False),
        ("Bearer \udcff", False),
    ],
)
def test_authorization_headers(header: str | None, taken: bool) -> None:
    assert TokenSet([GOOD]).accepts_header(header) is taken


def test_no_token_at_all_lets_nobody_in() -> None:
    assert not TokenSet([]).accepts_header("Bearer ")


@pytest.mark.parametrize("text", ["short", "a" * 40, "two words that are long enough here", ""])
def test_secrets_that_could_be_guessed_are_refused(tmp_path: Path, text: str) -> None:
    path = secret_file(tmp_path, text)
    with pytest.raises(ConfigError, match="token_urlsafe"):
        read_tokens(path)
    with pytest.raises(ConfigError, match="token_urlsafe"):
        read_secret(path)


@pytest.mark.parametrize("mode", [0o644, 0o620, 0o602])
def test_secrets_that_others_can_read_or_change_are_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match="chmod 600"):
        read_tokens(secret_file(tmp_path, GOOD, mode))


def test_a_secret_file_that_is_not_there_or_no_text_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing: cannot be read \(No such file"):
        read_secret(tmp_path / "missing")
    path = secret_file(tmp_path, "")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_tokens(path)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LOCALHOST."])
def test_hosts_of_this_computer(host: str) -> None:
    assert is_loopback(host)
    check_dicom_port(host, AllowList(), None)
    check_http_port(host, None, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.1.2.3", "pacs.example", "localhost.example", "128.0.0.1"])
def test_ports_beyond_this_computer_need_to_know_their_callers(host: str) -> None:
    one_way = TlsServer("server.pem", "server.key")
    both_ways = TlsServer("server.pem", "server.key", client_ca="ca.pem")
    for allow in (AllowList(), AllowList(ae_titles=("CT1",)), AllowList(addresses=("0.0.0.0/0",))):
        for tls in (None, one_way):
            with pytest.raises(ConfigError, match=r"beyond this computer.*allow\.addresses"):
                check_dicom_port(host, allow, tls)
    with pytest.raises(ConfigError, match=r"beyond this computer.*token_file"):
        check_http_port(host, None, one_way)
    check_dicom_port(host, AllowList(addresses=("10.1.2.0/24",)), None)
    check_dicom_port(host, AllowList(), both_ways)
    check_http_port(host, "tokens", None)
    check_http_port(host, None, both_ways)


def test_one_open_network_among_the_addresses_opens_everything() -> None:
    assert not AllowList(addresses=("10.1.2.0/24", "::/0")).narrows


@pytest.mark.parametrize(
    ("title", "address", "told"),
    [
        ("CT1", "10.1.2.3", ""),
        (" CT1 ", "10.1.2.3", ""),
        ("CT1", "::ffff:10.1.2.3", ""),
        ("CT1", "10.1.3.3", "address"),
        ("CT1", "fe80::1%eth0", "address"),
        ("CT1", "nonsense", "address"),
        ("ct1", "10.1.2.3", "AE title"),
        ("", "10.1.2.3", "AE title"),
    ],
)
def test_callers_against_the_lists(title: str, address: str, told: str) -> None:
    refusal = AllowList(("CT1", "CT2"), ("10.1.2.0/24",)).refusal(title, address)
    assert told in refusal
    assert bool(refusal) is bool(told)
    assert AllowList().refusal(title, address) == ""


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"addresses": ["10.1.2"]}, "neither an address nor a network"),
        ({"ae_titles": ["A_TITLE_THAT_IS_TOO_LONG"]}, "no AE title"),
        ({"ae_titles": ["A\\B"]}, "no AE title"),
        ({"ae_titles": ["  "]}, "no AE title"),
        ({"adresses": []}, "Did you mean 'addresses'"),
    ],
)
def test_lists_that_cannot_be_meant_are_refused(values: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        from_mapping(AllowList, values, "allow")


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Certificates of a hospital and of a stranger."""
    folder = tmp_path_factory.mktemp("certificates")
    told = {}
    for name in ("hospital", "stranger"):
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(folder / f"{name}-ca.pem"))
        told[f"{name}_ca"] = str(folder / f"{name}-ca.pem")
        for role, host in (("server", "127.0.0.1"), ("client", "ct1.example")):
            leaf = authority.issue_cert(host)
            leaf.cert_chain_pems[0].write_to_path(str(folder / f"{name}-{role}.pem"))
            leaf.private_key_pem.write_to_path(str(folder / f"{name}-{role}.key"))
            told[f"{name}_{role}"] = str(folder / f"{name}-{role}.pem")
            told[f"{name}_{role}_key"] = str(folder / f"{name}-{role}.key")
    return told


def talk(server: ssl.SSLContext, client: ssl.SSLContext, name: str = "127.0.0.1") -> str:
    """Let a client say hello to an echo over TLS; return what came back, or the error that the client met."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def echo() -> None:
            plain, _ = listening.accept()
            try:
                with server.wrap_socket(plain, server_side=True) as secure:
                    secure.sendall(secure.recv(100))
            except OSError:
                plain.close()

        thread = threading.Thread(target=echo, daemon=True)
        thread.start()
        try:
            with (
                socket.create_connection(listening.getsockname(), timeout=10) as plain,
                client.wrap_socket(plain, server_hostname=name) as secure,
            ):
                secure.sendall(b"hello")
                return secure.recv(100).decode()
        except OSError as error:
            return type(error).__name__
        finally:
            thread.join(10)


def test_tls_lets_in_whom_the_hospital_signed_and_nobody_else(papers: dict[str, str]) -> None:
    server = server_context(TlsServer(papers["hospital_server"], papers["hospital_server_key"], papers["hospital_ca"]))
    trusts = papers["hospital_ca"]
    signed = client_context(TlsClient(trusts, papers["hospital_client"], papers["hospital_client_key"]))
    assert talk(server, signed) == "hello"
    assert talk(server, client_context(TlsClient(trusts))) != "hello"
    forged = client_context(TlsClient(trusts, papers["stranger_client"], papers["stranger_client_key"]))
    assert talk(server, forged) != "hello"


def test_tls_checks_the_peer_and_its_name(papers: dict[str, str]) -> None:
    server = server_context(TlsServer(papers["hospital_server"], papers["hospital_server_key"]))
    assert talk(server, client_context(TlsClient(papers["hospital_ca"]))) == "hello"
    assert talk(server, client_context(TlsClient(papers["stranger_ca"]))) == "SSLCertVerificationError"
    assert talk(server, client_context(TlsClient())) == "SSLCertVerificationError"
    assert talk(server, client_context(TlsClient(papers["hospital_ca"])), "pacs.example") == "SSLCertVerificationError"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls_speaks_nothing_older_than_1_2(papers: dict[str, str]) -> None:
    server = server_context(TlsServer(papers["hospital_server"], papers["hospital_server_key"]))
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(papers["hospital_ca"])
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    old.minimum_version = ssl.TLSVersion.TLSv1
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    assert talk(server, old) != "hello"
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert talk(server, old) == "hello"


def test_tls_files_that_do_not_fit_are_one_clear_line(papers: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="belongs to the key"):
        server_context(TlsServer(papers["hospital_server"], papers["hospital_client_key"]))
    with pytest.raises(ConfigError, match=r"none\.pem: cannot be read"):
        server_context(TlsServer(str(tmp_path / "none.pem"), papers["hospital_server_key"]))
    (tmp_path / "empty.pem").write_text("")
    with pytest.raises(ConfigError, match="holds no PEM certificate"):
        client_context(TlsClient(str(tmp_path / "empty.pem")))
    with pytest.raises(ConfigError, match="go together"):
        from_mapping(TlsClient, {"certificate": "a.pem"}, "peer.tls")


def test_a_key_with_a_passphrase_is_refused_and_never_asked_for(papers: dict[str, str], tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(Path(papers["hospital_server_key"]).read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"passphrase"),
    )
    (tmp_path / "locked.key").write_bytes(locked)
    with pytest.raises(ConfigError, match="without a passphrase"):
        server_context(TlsServer(papers["hospital_server"], str(tmp_path / "locked.key")))

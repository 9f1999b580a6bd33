"""Who may talk to hemolens: allow-lists, bearer tokens, TLS, and the rule that nothing listens openly by accident.

A port that is reached from beyond this computer must know its callers: a DICOM port by client certificates or by a list
of addresses, the HTTP port by client certificates or bearer tokens. AE titles are names that anybody may use: a list of
them keeps mistakes out, not attackers, and alone it opens no port.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import ssl
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hemolens.errors import ConfigError

SHORTEST_SECRET = 24
"""Characters of a token or signing key; `secrets.token_urlsafe(32)` gives 43."""
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class TlsServer:
    """How a port of hemolens shows who it is, and whom it asks for a certificate."""

    certificate: str
    """PEM file: the certificate, and those between it and its root."""
    key: str
    """PEM file: the private key, without a passphrase."""
    client_ca: str | None = None
    """PEM file: only callers with a certificate signed by one of these may connect. None: callers show none."""


@dataclass(frozen=True)
class TlsClient:
    """How hemolens knows a peer that it calls, and shows who it is."""

    ca: str | None = None
    """PEM file of the roots that may sign the peer's certificate; None for those of the system."""
    certificate: str | None = None
    """PEM file: the certificate that hemolens shows."""
    key: str | None = None
    """PEM file: its private key, without a passphrase."""
    server_name: str | None = None
    """Name in the peer's certificate, where it is not the host that is called."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together: give both or neither")


@dataclass(frozen=True)
class AllowList:
    """Which callers a DICOM port takes."""

    ae_titles: tuple[str, ...] = ()
    """Calling AE titles; empty for any."""
    addresses: tuple[str, ...] = ()
    """Addresses such as ``10.1.2.3`` or networks such as ``10.1.2.0/24``; empty for any."""

    def __post_init__(self) -> None:
        for title in self.ae_titles:
            if not 1 <= len(title.strip()) <= 16 or "\\" in title or not title.isascii() or not title.isprintable():
                raise ValueError(f"{title!r} is no AE title: 1 to 16 ASCII characters without a backslash")
        self.networks()

    def networks(self) -> tuple[Network, ...]:
        """Return `addresses` as networks.

        Raises
        ------
        ValueError
            If one of them is neither an address nor a network.
        """
        return tuple(_network(text) for text in self.addresses)

    @property
    def narrows(self) -> bool:
        """Whether the addresses leave anybody out."""
        networks = self.networks()
        return bool(networks) and all(network.prefixlen > 0 for network in networks)

    def refusal(self, calling_ae: str, address: str) -> str:
        """Return why a caller is turned away, for a log; empty if it may come in.

        Parameters
        ----------
        calling_ae
            As the caller names itself.
        address
            Where the connection comes from.
        """
        if self.ae_titles and calling_ae.strip() not in {title.strip() for title in self.ae_titles}:
            return "its AE title is not on the list"
        if not self.addresses:
            return ""
        try:
            told = ipaddress.ip_address(address.split("%")[0])
        except ValueError:
            return "its address cannot be read"
        plain = getattr(told, "ipv4_mapped", None) or told
        return "" if any(plain in network for network in self.networks()) else "its address is not on the list"


class TokenSet:
    """Bearer tokens, kept as digests only; a look takes as long for a wrong one as for a right one.

    Parameters
    ----------
    tokens
        As callers send them.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self._digests = tuple(_digest(token) for token in tokens)

    def __len__(self) -> int:
        return len(self._digests)

    def __repr__(self) -> str:
        return f"TokenSet({len(self)})"

    def accepts(self, token: str) -> bool:
        """Whether a token is one of the set."""
        found, given = False, _digest(token)
        for digest in self._digests:  # every one of them, whatever came before
            found |= hmac.compare_digest(digest, given)
        return found

    def accepts_header(self, header: str | None) -> bool:
        """Whether an ``Authorization`` header (RFC 6750) carries one of the tokens."""
        scheme, _, token = (header or "").partition(" ")
        return scheme.lower() == "bearer" and self.accepts(token.strip())


def read_tokens(path: str | Path) -> TokenSet:
    """Read the file of bearer tokens: one a line; empty lines and those that start with ``#`` do not count.

    Raises
    ------
    ConfigError
        If the file cannot be read, is open to other users, or holds no token or one that could be guessed.
    """
    lines = [line.strip() for line in _secret_text(Path(path)).splitlines()]
    tokens = [line for line in lines if line and not line.startswith("#")]
    if not tokens:
        raise ConfigError(f"{path}: holds no token. {HOW_TO_MAKE_ONE}")
    for token in tokens:
        _check_strength(Path(path), token)
    return TokenSet(tokens)


def read_secret(path: str | Path) -> bytes:
    """Read a file that holds one secret, such as the key that webhooks are signed with.

    Raises
    ------
    ConfigError
        If the file cannot be read, is open to other users, or holds what could be guessed.
    """
    secret = _secret_text(Path(path)).strip()
    _check_strength(Path(path), secret)
    return secret.encode()


HOW_TO_MAKE_ONE = "Make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"


def _check_strength(path: Path, secret: str) -> None:
    if len(secret) < SHORTEST_SECRET or len(set(secret)) < 8 or any(c.isspace() for c in secret):
        raise ConfigError(
            f"{path}: holds a secret that is shorter than {SHORTEST_SECRET} characters, repeats few of them, or has "
            f"spaces. {HOW_TO_MAKE_ONE}"
        )


def _secret_text(path: Path) -> str:
    try:
        if path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
            raise ConfigError(f"{path}: other users of this computer can read or change it. Run: chmod 600 '{path}'")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def is_loopback(host: str) -> bool:
    """Whether a host to listen on is reached from this computer alone. Other names are not looked up: they are not."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]").split("%")[0]).is_loopback
    except ValueError:
        return False


def check_dicom_port(host: str, allow: AllowList, tls: TlsServer | None) -> None:
    """Refuse a DICOM port that strangers could reach.

    Raises
    ------
    ConfigError
        If `host` is more than this computer and neither client certificates nor addresses say who may call.
    """
    if is_loopback(host) or (tls is not None and tls.client_ca) or allow.narrows:
        return
    raise ConfigError(
        f"listener.host: {host} is reached from beyond this computer. Say who may call: set allow.addresses, or tls "
        "with client_ca; AE titles alone can be made up. Or listen on 127.0.0.1."
    )


def check_http_port(host: str, token_file: str | None, tls: TlsServer | None) -> None:
    """Refuse an HTTP port that strangers could reach.

    Raises
    ------
    ConfigError
        If `host` is more than this computer and neither client certificates nor tokens say who may call.
    """
    if is_loopback(host) or (tls is not None and tls.client_ca) or token_file:
        return
    raise ConfigError(
        f"api.host: {host} is reached from beyond this computer. Say who may call: set api.token_file, or tls with "
        "client_ca. Or listen on 127.0.0.1."
    )


def server_context(tls: TlsServer) -> ssl.SSLContext:
    """Return the TLS of a port: 1.2 or later, as BCP 195 and PS3.15 B.9 ask; with `client_ca` callers must show theirs.

    Raises
    ------
    ConfigError
        If a file cannot be read, or certificate and key do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context)
    _show(context, tls.certificate, tls.key)
    if tls.client_ca is not None:
        _trust(context, tls.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(tls: TlsClient) -> ssl.SSLContext:
    """Return the TLS of a call to a peer: 1.2 or later; the peer's certificate and its name are always checked.

    Raises
    ------
    ConfigError
        If a file cannot be read, or certificate and key do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _harden(context)
    if tls.ca is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _trust(context, tls.ca)
    if tls.certificate is not None and tls.key is not None:
        _show(context, tls.certificate, tls.key)
    return context


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    # For TLS 1.2: forward secrecy and authenticated encryption, nothing else. Those of TLS 1.3 are all of this kind.
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:!aNULL")


def _show(context: ssl.SSLContext, certificate: str, key: str) -> None:
    for name in (certificate, key):
        _check_readable(Path(name))
    try:
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"{certificate}: no PEM certificate that belongs to the key {key}, or that key has a passphrase. "
            "Give the certificate and its own key, without a passphrase, as PEM files."
        ) from error


def _trust(context: ssl.SSLContext, authorities: str) -> None:
    _check_readable(Path(authorities))
    try:
        context.load_verify_locations(cafile=authorities)
    except ssl.SSLError as error:
        raise ConfigError(f"{authorities}: holds no PEM certificate. Give the file of the roots to trust.") from error


def _no_passphrase() -> str:
    """Answer instead of OpenSSL's question on the terminal, which would hang a service."""
    raise ValueError("the key has a passphrase")


def _check_readable(path: Path) -> None:
    try:
        with path.open("rb") as stream:
            stream.read(1)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or "it is no text"
    return ConfigError(f"{path}: cannot be read ({reason}). Check the path in the settings and who may read it.")


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise ValueError(f"{text!r} is neither an address nor a network such as 10.1.2.0/24") from error


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()

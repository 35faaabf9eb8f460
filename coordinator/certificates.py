"""A local authority and a server certificate for trials, where no public authority can vouch for a coordinator."""

import ipaddress
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet import durable
from fleet.errors import TamperedError, UsageError
from fleet.signing import sha256

FOLDER = "certificates"
AUTHORITY, AUTHORITY_KEY, SERVER, SERVER_KEY = "authority.pem", "authority.key", "server.pem", "server.key"
_AUTHORITY_LIFE = timedelta(days=3650)
_SERVER_LIFE = timedelta(days=397)
_EARLIER = timedelta(hours=1)  # for clocks that are behind


def make(folder: Path, hosts: list[str], *, now: datetime) -> None:
    """Make the authority, if there is none yet, and a fresh server certificate for host names and addresses.

    Raises:
        UsageError: A host is neither a name nor an address.
        TamperedError: What is there of an authority cannot be read.
    """
    names = [_host(host) for host in hosts]
    if not (folder / AUTHORITY).exists():
        _make_authority(folder, now)
    try:
        authority = x509.load_pem_x509_certificate((folder / AUTHORITY).read_bytes())
        signer = load_pem_private_key((folder / AUTHORITY_KEY).read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise TamperedError(f"the authority in {folder} cannot be read: {error}") from error
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise TamperedError(f"{folder / AUTHORITY_KEY} is no EC key")
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(_name(hosts[0]), authority.subject, key, now, _SERVER_LIFE)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    chain = builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM) + authority.public_bytes(Encoding.PEM)
    durable.write(folder / SERVER_KEY, _pem(key), mode=0o600)
    durable.write(folder / SERVER, chain)


def fingerprint(certificate: bytes) -> str:
    """SHA-256 in hex of the DER of a certificate in PEM: what an invitation carries.

    Raises:
        UsageError: It is no certificate.
    """
    try:
        return sha256(x509.load_pem_x509_certificate(certificate).public_bytes(Encoding.DER))
    except ValueError as error:
        raise UsageError(f"the authority's certificate cannot be read: {error}") from error


def _make_authority(folder: Path, now: datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("edgefleet local authority")
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        _builder(name, name, key, now, _AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    durable.write(folder / AUTHORITY_KEY, _pem(key), mode=0o600)
    durable.write(folder / AUTHORITY, builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.split(".")
    if not host.isascii() or len(host) > 253 or not all(part and part.replace("-", "a").isalnum() for part in labels):
        raise UsageError(f"host {host[:80]!r} is neither a name nor an address")
    return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

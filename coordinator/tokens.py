"""Short-lived tokens: a node shows one instead of signing every request."""

from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey

from fleet.errors import RefusedError

LIFE = timedelta(minutes=10)
_ALGORITHM = "Ed25519"
_PURPOSE = "edgefleet-device"


class Tokens:
    """Mints and reads JSON Web Tokens (RFC 7519, RFC 9864). Only the holder of ``key`` can make one."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = OKPKey.import_key(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self._head = self._signed({}).partition(".")[0]

    def mint(self, node: str, *, now: datetime) -> tuple[str, datetime]:
        """A token for a node, and when it expires."""
        expires = (now + LIFE).replace(microsecond=0)
        claims = {"sub": node, "aud": _PURPOSE, "exp": int(expires.timestamp())}
        return self._signed(claims), expires

    def read(self, token: str, *, now: datetime) -> str:
        """Whose token this is.

        Raises:
            RefusedError: ``token``: we did not mint it, or it expired.
        """
        if token.partition(".")[0] != self._head:  # a stranger's header may break who reads it
            raise RefusedError("token", "the token is not ours")
        try:
            claims = jwt.decode(token, self._key, algorithms=[_ALGORITHM]).claims
        except (JoseError, ValueError) as error:
            raise RefusedError("token", "the token is not ours") from error
        if claims.get("aud") != _PURPOSE or not isinstance(claims.get("sub"), str):
            raise RefusedError("token", "the token is for something else")
        if datetime.fromtimestamp(claims["exp"], UTC) <= now:
            raise RefusedError("token", "the token expired: ask for another")
        return str(claims["sub"])

    def _signed(self, claims: dict[str, Any]) -> str:
        return jwt.encode({"alg": _ALGORITHM}, claims, self._key, algorithms=[_ALGORITHM])

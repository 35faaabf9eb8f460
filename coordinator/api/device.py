"""What devices may ask over HTTP, beside Flower's Fleet API on the same listener.

All bodies are JSON in UTF-8, at most 64 KiB. A *sealed* request is ``{"body": B64, "signature": B64}``: standard base64
of ``fleet.signing.Sealed``. An error is RFC 9457, ``application/problem+json``:
``{"type": "about:blank", "title": str, "status": int, "detail": str, "code": str}``; the codes are in docs/refusals.md.
A 503 and a 429 carry ``Retry-After`` in seconds.

GET /api/v1/time
    No credentials. -> 200 ``{"now": "2026-12-01T12:00:00.123456+00:00"}``

POST /api/v1/enrol
    Sealed ``fleet.enrolment.Enrolment`` (by ``Enrolment.sealed``). No credentials but the secret in it.
    -> 200 ``fleet.enrolment.Welcome.to_json()``; read it with ``Welcome.checked(answer, invitation)``:
    ``{"name": str, "root": B64, "instruction_key": B64, "task": {"name": str, "reference": str},
    "settings": {"privacy": {...}, "round": {...}, ...}, "flower_id": int}``.
    The very same request (same keys, same secret) may be sent again and is answered alike.
    -> 400 malformed, signature; 403 invitation (unknown, used, expired, another name); 422 clock.

POST /api/v1/token
    Sealed ``fleet.enrolment.TokenRequest``: ``{node, nonce, time}``; nonce 16 to 64 characters, once; time within 5
    minutes of ours.
    -> 200 ``{"token": "eyJ...", "expires": "2026-12-01T12:10:00+00:00"}``, an EdDSA JWT of 10 minutes.
    -> 401 unknown-node, signature; 401 clock, with ``"now"`` beside ``code``; 401 replayed; 403 revoked.

The rest needs ``Authorization: Bearer TOKEN``; 401 token (missing, malformed, expired), 403 revoked.

GET /api/v1/repository/metadata/{NAME}.json and GET /api/v1/repository/targets/{PATH}
    The TUF repository. ``ETag``, ``If-None-Match`` -> 304, one ``Range`` -> 206 or 416. 404 not-found.

GET /api/v1/status
    -> 200 ``{"round": int | null, "release": int, "poll_s": int}``: the open round, the newest release, and in how many
    seconds to ask again.
"""

"""A gate before a web application: its user's own browser passes, everybody else gets 403.

On a shared machine every account reaches 127.0.0.1, and so does every page that the user's browser
has open. The gate therefore asks each request for a secret that only the user was shown:

- The printed address carries the key. A visit to it sets a cookie and leads into the room, a path
  that nobody can guess: browsers send a cookie to every port of a host, but only below its path, so
  another account's server on this machine never sees it.
- A request passes when it is below the room, carries the cookie, names this server as its host (a
  foreign name that resolves to 127.0.0.1 does not) and comes from no other page.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = b"scaling_ui"
REFUSAL = b"These pages are for one user. Open the address that `scaling ui` printed.\n"


class Gate:
    """An ASGI application around another one; `start` is the page of it that comes first, as the
    fragment of an address."""

    def __init__(self, app: App, port: int, start: str = "") -> None:
        self.app, self.start = app, start
        self.key = secrets.token_urlsafe(32)
        self.room = f"/{secrets.token_urlsafe(24)}/"
        self.hosts = (f"127.0.0.1:{port}", f"localhost:{port}")
        self.address = f"http://{self.hosts[0]}/?key={self.key}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: 403
        elif not self._from_here(scope):
            await _answer(send, 403, REFUSAL)
        elif scope["path"] == "/" and self._is_key(_key_of(scope["query_string"])):
            cookie = f"{COOKIE.decode()}={self.key}; Path={self.room}; HttpOnly; SameSite=Strict"
            await _answer(send, 303, b"", location=self.room + self.start, set_cookie=cookie)
        elif scope["path"].startswith(self.room) and any(map(self._is_key, _cookies(scope))):
            await self.app(self._inside(scope), receive, _discreet(send))
        else:
            await _answer(send, 403, REFUSAL)

    def _from_here(self, scope: Scope) -> bool:
        """Whether a request is to this server by its name, and from no page but its own.

        Two ports of a host are one *site* to a browser, so `Sec-Fetch-Site: same-site` is foreign.
        """
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or hosts[0].lower() not in self.hosts:
            return False
        here = f"http://{hosts[0].lower()}"
        return (
            all(origin.lower() == here for origin in _values(scope, b"origin"))
            and all(page.lower().startswith(f"{here}/") for page in _values(scope, b"referer"))
            and all(s in ("same-origin", "none") for s in _values(scope, b"sec-fetch-site"))
        )

    def _inside(self, scope: Scope) -> Scope:
        """The request as the application knows it, without the room in its path."""
        cut = len(self.room) - 1
        inner = dict(scope, path=scope["path"][cut:])
        raw = scope.get("raw_path") or b""
        if raw.startswith(self.room.encode()):
            return inner | {"raw_path": raw[cut:]}
        inner.pop("raw_path", None)  # the room spelt with % signs; `path` says the same
        return inner

    def _is_key(self, given: bytes) -> bool:
        return secrets.compare_digest(given, self.key.encode())


def _values(scope: Scope, name: bytes) -> list[str]:
    """All values of a header; several are as foreign as the most foreign one."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _key_of(query: bytes) -> bytes:
    found = parse_qs(query.decode("latin-1"), encoding="latin-1").get("key")
    return found[-1].encode() if found else b""


def _cookies(scope: Scope) -> list[bytes]:
    pairs = [p for v in _values(scope, b"cookie") for p in v.encode("latin-1").split(b";")]
    return [v.strip() for k, _, v in (p.partition(b"=") for p in pairs) if k.strip() == COOKIE]


def _discreet(send: Send) -> Send:
    """The same answers, in pages that tell no other server where they are."""

    async def with_policy(message: Scope) -> None:
        if message["type"] == "http.response.start":
            kept = [h for h in message.get("headers", []) if h[0].lower() != b"referrer-policy"]
            message = {**message, "headers": [*kept, (b"referrer-policy", b"same-origin")]}
        await send(message)

    return with_policy


async def _answer(send: Send, status: int, body: bytes, **headers: str) -> None:
    told = {"content_type": "text/plain; charset=utf-8", "cache_control": "no-store"}
    told |= {"content_length": str(len(body)), "referrer_policy": "no-referrer"} | headers
    lines = [(k.replace("_", "-").encode(), v.encode()) for k, v in told.items()]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})

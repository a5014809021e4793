"""API keys: made once, shown once, kept as hashes in `HOME/keys.json`.

A key is 256 random bits, so one round of SHA-256 is enough of a hash: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from gpt2 import store
from gpt2.atomic import atomic_file, locked
from gpt2.errors import ConfigError

SCOPES = ("query", "train", "admin")
"""`query` asks models, `train` also trains and saves, `admin` may do everything."""
_ALSO = {"query": {"query"}, "train": {"query", "train"}, "admin": {"query", "train", "admin"}}


@dataclass(frozen=True)
class Key:
    """A key, without the key itself."""

    id: str
    """For people and logs."""
    name: str
    """What it is for."""
    scope: str
    """The most that it may."""
    sha256: str
    """Of the key."""
    created: int
    """Seconds since 1970."""

    def may(self, scope: str) -> bool:
        """Whether it opens what needs this scope."""
        return scope in _ALSO[self.scope]


class Keys:
    """The keys in a file; changes made by others are seen at once."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or store.home() / "keys.json"
        self._state: tuple[int, int, int] | None = None
        self._keys: list[Key] = []

    def all(self) -> list[Key]:
        """All keys.

        Raises:
            ConfigError: the file is broken; nobody is let in then.
        """
        try:
            status = self.path.stat()
        except FileNotFoundError:
            self._state, self._keys = None, []
            return []
        state = (status.st_mtime_ns, status.st_ino, status.st_size)
        if state != self._state:
            try:
                self._keys = [Key(**row) for row in json.loads(self.path.read_text(encoding="utf-8"))]
                if not all(key.scope in SCOPES and len(key.sha256) == 64 for key in self._keys):
                    raise ValueError("a scope or a hash is none")
            except (ValueError, TypeError) as error:
                raise ConfigError(f"{self.path}: expected a list of keys: {error}") from None
            self._state = state
        return self._keys

    def find(self, secret: bytes) -> Key | None:
        """Whose key this is. All hashes are compared, in the same time whatever they are."""
        digest = hashlib.sha256(secret).hexdigest()
        found = None
        for key in self.all():
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def create(self, name: str, scope: str) -> str:
        """Make a key and give it; only its hash is kept.

        Raises:
            ConfigError: no such scope, or a name that is empty, long or taken.
        """
        if scope not in SCOPES:
            raise ConfigError(f"scope: expected one of {', '.join(SCOPES)}, got {scope!r}")
        if not name.strip() or len(name) > 64 or not name.isprintable():
            raise ConfigError(f"name: expected 1 to 64 printing characters, got {name!r:.80}")
        secret = "gpt2-" + secrets.token_urlsafe(32)
        with self._changing():
            if any(key.name == name for key in self.all()):
                raise ConfigError(f"name: {name!r} is taken; remove that key first, or choose another name")
            digest = hashlib.sha256(secret.encode()).hexdigest()
            self._write([*self.all(), Key(secrets.token_hex(4), name, scope, digest, int(time.time()))])
        return secret

    def remove(self, name_or_id: str) -> Key:
        """Remove a key; it opens nothing from now on.

        Raises:
            ConfigError: there is none.
        """
        with self._changing():
            found = next((key for key in self.all() if name_or_id in (key.name, key.id)), None)
            if found is None:
                raise ConfigError(f"key: expected the name or id of one (gpt2 keys list), got {name_or_id!r:.80}")
            self._write([key for key in self.all() if key is not found])
        return found

    def _changing(self) -> AbstractContextManager[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return locked(self.path.with_name(f".{self.path.name}.lock"))

    def _write(self, keys: Sequence[Key]) -> None:
        with atomic_file(self.path) as path:
            path.touch(0o600)
            path.write_text(json.dumps([asdict(key) for key in keys], indent=1), encoding="utf-8")

"""What the routes of one server share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from gpt2.hosting import Host
from gpt2.server.keys import Keys
from gpt2.server.metrics import Metrics
from gpt2.server.settings import Settings


@dataclass
class Service:
    """Settings, models, keys and figures."""

    settings: Settings
    host: Host
    keys: Keys
    metrics: Metrics
    started: int = field(default_factory=lambda: int(time.time()))
    """Seconds since 1970."""
    stopping: bool = False
    """Whether it takes no more requests."""

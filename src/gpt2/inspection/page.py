"""An inspection as one page that opens from disk: no network, nothing that a text in it could do.

Tokens are coloured by loss; a chosen one shows where a head looks and what each layer expects after it. The page is
made of `assets/inspection/`; the data stand in it as JSON, and its script puts every text in as text. The policy in its
head allows that script and that style sheet, by their hashes, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import string
from importlib import resources
from typing import Any

import numpy as np

from gpt2.errors import ConfigError
from gpt2.inspection.reading import Inspection

MAX_ATTENTION = 96_000_000
"""Numbers of attention that a page holds, one byte each: all heads of 124M over 1,024 tokens are 75 million."""


def attention_html(inspection: Inspection) -> str:
    """The page of an inspection.

    Raises:
        ConfigError: more attention than a browser should be given.
    """
    L, H, T, _ = inspection.patterns.shape
    if L * H * T * (T + 1) // 2 > MAX_ATTENTION:
        most = math.isqrt(2 * MAX_ATTENTION // (L * H)) - 1
        raise ConfigError(f"text: expected at most {most} tokens for a page of {L * H} heads, got {T}")
    parts = {name: _asset(f"page.{name}") for name in ("html", "css", "js")}
    policy = f"default-src 'none'; script-src '{_hash(parts['js'])}'; style-src '{_hash(parts['css'])}'"
    k = inspection.lens.predictions[0].top.shape[1]
    facts = f"{T:,} token{'s' * (T != 1)}"
    if T > 1:
        facts += (
            f", mean loss {inspection.mean_loss:.3f} nats a token (perplexity {math.exp(inspection.mean_loss):,.1f})"
        )
    changed = html.escape(inspection.changed)
    return string.Template(parts["html"]).substitute(
        policy=f"{policy}; base-uri 'none'; form-action 'none'",
        model=html.escape(inspection.model) + (", changed" if changed else ""),
        facts=facts,
        changed=f'<p class="changed" id="changed"><strong>Not the model as it is:</strong> {changed}.</p>'
        * bool(changed),
        weights=inspection.weights_sha256,
        columns="".join(f'<th scope="col">{n + 1}</th>' for n in range(k)),
        style=parts["css"],
        data=_json(_data(inspection)),
        script=parts["js"],
    )


def _data(inspection: Inspection) -> dict[str, Any]:
    """What the script reads; texts of predicted tokens stand once, in `words`, and are meant by their number there."""
    T = len(inspection.ids)
    numbers: dict[int, int] = {}

    def number(token: int) -> int:
        return numbers.setdefault(int(token), len(numbers))

    stages = inspection.lens.predictions
    top = [
        [
            [[number(token), round(float(share), 5)] for token, share in zip(tokens, shares, strict=True)]
            for tokens, shares in zip(stage.top, stage.top_probabilities, strict=True)
        ]
        for stage in stages
    ]
    following = [number(token) for token in inspection.ids[1:]]
    rows, columns = np.tril_indices(T)
    lower = inspection.patterns[:, :, rows, columns]  # (L, H, T * (T + 1) / 2)
    return {
        "model": inspection.model,
        "weights_sha256": inspection.weights_sha256,
        "changes": inspection.changes,
        "tokens": inspection.texts,
        "losses": [None if math.isnan(loss) else round(float(loss), 4) for loss in inspection.losses],
        "layers": inspection.patterns.shape[0],
        "heads": inspection.patterns.shape[1],
        "attention": base64.b64encode(np.rint(np.clip(lower, 0, 1) * 255).astype(np.uint8).tobytes()).decode("ascii"),
        "stages": inspection.lens.stages,
        "top": top,
        "next": following,
        "ranks": [stage.ranks.tolist() for stage in stages],
        "words": [inspection.vocabulary(token) for token in numbers],
    }


def _json(value: Any) -> str:
    """JSON that nothing in it can end: in a script element, `<` begins what is not JSON."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").encode("utf-8", "replace").decode("utf-8")


def _asset(name: str) -> str:
    return (resources.files("gpt2") / "assets" / "inspection" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")

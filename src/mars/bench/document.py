"""One HTML file that needs nothing else: its charts' library inside, nothing from outside."""

import hashlib
import json
from base64 import b64encode
from collections.abc import Mapping
from html import escape
from typing import Any

import plotly.offline


def document(*, title: str, style: str, body: str, figures: Mapping[str, Any], drawing: str) -> str:
    """`drawing` is a script that finds the plotly figures in FIGURES, by the ids of their places;
    `body` is HTML. No other script runs (Content-Security-Policy).
    """
    library: str = plotly.offline.get_plotlyjs()
    script = f"const FIGURES = {_as_json(figures)};\n{drawing}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_security(library, script)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)} - mars report</title><style>{style}</style></head>
<body><main>{body}</main>
<script>{library}</script>
<script>{script}</script>
</body></html>
"""


def _security(*scripts: str) -> str:
    hashes = (b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts)
    allowed = " ".join(f"'sha256-{h}'" for h in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
    )


def _as_json(figures: Mapping[str, Any]) -> str:
    found = {name: json.loads(figure.to_json()) for name, figure in figures.items()}
    return json.dumps(found).replace("<", "\\u003c")  # no "</script>" inside a script

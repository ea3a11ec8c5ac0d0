"""The shell that `serve` puts around the page: it frames it, hands it a port, and alone speaks to the server."""

from __future__ import annotations

from functools import cache
from importlib import resources

STYLE = "html,body,iframe{margin:0;border:0;width:100%;height:100%;display:block}"


@cache
def _script() -> str:
    return resources.files("mechwork.live").joinpath("shell.js").read_text(encoding="utf-8")


def shell_page(nonce: str) -> str:
    """The outer page, which holds nothing but the frame."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>mechwork live</title>
<link rel="icon" href="data:,">
<style nonce="{nonce}">{STYLE}</style>
</head>
<body>
<iframe title="The workbench" sandbox="allow-scripts allow-downloads" allow="clipboard-write"></iframe>
<script nonce="{nonce}">{_script()}</script>
</body>
</html>
"""


def shell_policy(nonce: str) -> str:
    """The shell may run its own script, frame the page and speak to its own server."""
    return (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "frame-src 'self'; img-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )


def page_policy() -> str:
    """The page is sandboxed by header too, wherever it is opened; its own policy (in its head) forbids any request."""
    return "sandbox allow-scripts allow-downloads; frame-ancestors 'self'"

r"""Self-contained pages: markup, styles and scripts in one file that asks the network for nothing.

A drawing is a `Fragment`: markup and the names of the bundles it needs. `assemble` puts fragments on one page, every
bundle once. A content security policy forbids the browser any request, any style attribute, and every script and style
but the page's own, named by their hashes. Data stand in the markup as JSON with every ``<`` written as ``\u003c``, so
no text can end the element that holds it.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from ...errors import MechworkError, UnknownNameError
from .text import escape

NO_SCRIPT_STYLE = ".mw-graph { display: none; } .mw-static { display: block; }"
"""Of a page whose scripts do not run; the only style outside the page's head."""


@dataclass(frozen=True)
class Bundle:
    """Styles and scripts that go together; `vendor` names a third-party script that ours unpack."""

    styles: tuple[str, ...] = ()
    scripts: tuple[str, ...] = ()
    vendor: str = ""


GRAPH_SCRIPTS = (
    "graph/geometry.js",
    "graph/model.js",
    "graph/levels.js",
    "graph/state.js",
    "graph/hash.js",
    "graph/reach.js",
    "graph/arrange.js",
    "graph/derive.js",
    "graph/pills.js",
    "graph/draw.js",
    "graph/canvas.js",
    "graph/view.js",
    "graph/controls.js",
    "graph/panel.js",
    "graph/lists.js",
    "graph/legend.js",
    "graph/keyboard.js",
    "graph/actions.js",
    "graph/tooltip.js",
    "graph/export.js",
    "graph/formats.js",
    "graph/mount.js",
)

LIVE_SCRIPTS = tuple(f"live/{name}.js" for name in ("words", "port", "screen", "views", "act", "tour"))

BUNDLES: dict[str, Bundle] = {
    "base": Bundle(styles=("base.css",), scripts=("links.js",)),
    "report": Bundle(styles=("report.css",), scripts=("report.js",)),
    "graph": Bundle(styles=("graph.css", "graph-panel.css"), scripts=GRAPH_SCRIPTS),
    "figures": Bundle(styles=("figures.css",), scripts=("figures.js",), vendor="plotly"),
    "attention": Bundle(styles=("attention.css",), scripts=("attention.js",), vendor="circuitsvis"),
    "tokens": Bundle(styles=("attention.css",), scripts=("tokens.js",), vendor="circuitsvis"),
    "lens": Bundle(styles=("lens.css",), scripts=("lens.js",)),
    "heads": Bundle(styles=("heads.css",), scripts=("heads.js",)),
    "live": Bundle(styles=("live.css",), scripts=LIVE_SCRIPTS),
}
"""Everything a page can need, in the order in which it is written."""


@dataclass(frozen=True)
class Fragment:
    """A piece of a page: markup, and the names of the bundles it needs."""

    body: str
    needs: tuple[str, ...] = ()


def assemble(title: str, fragments: Iterable[Fragment], *, body_class: str = "") -> str:
    """One self-contained HTML page of `fragments`, one below the other."""
    fragments = list(fragments)
    wanted = {"base", *(name for fragment in fragments for name in fragment.needs)}
    for name in wanted - BUNDLES.keys():
        raise UnknownNameError("bundle", name, BUNDLES)
    bundles = [bundle for name, bundle in BUNDLES.items() if name in wanted]
    sheet = "\n".join(asset(name) for name in dict.fromkeys(name for bundle in bundles for name in bundle.styles))
    vendors = dict.fromkeys(bundle.vendor for bundle in bundles if bundle.vendor)
    own = [_own_script(bundle) for bundle in bundles if bundle.scripts]
    policy = content_policy([*map(_hash, own), *(_vendor(name)[1] for name in vendors)], [sheet, NO_SCRIPT_STYLE])
    scripts = "\n".join([*map(_packed, vendors), *(f"<script>{source}</script>" for source in own)])
    body = "\n".join(fragment.body for fragment in fragments)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="mechwork">
<title>{escape(title)}</title>
<style>{sheet}</style>
</head>
<body class="{escape(body_class)}">
{body}
{scripts}
</body>
</html>
"""


def content_policy(scripts: Iterable[str], styles: Iterable[str]) -> str:
    """The policy of a page with scripts of these hashes and these styles; plotly makes empty style elements."""
    empty = _hash("")
    allowed = " ".join([*map(_hash, styles), empty])
    return (
        f"default-src 'none'; script-src {' '.join(scripts)}; style-src {allowed}; style-src-attr 'unsafe-hashes' "
        f"{empty}; img-src data: blob:; font-src data:; connect-src 'none'; form-action 'none'; base-uri 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


PACK_ABOVE = 40_000
"""Data of more characters than this stand gzipped in the page, about a fifth as long."""


def embed_json(value: Any, *, name: str = "") -> str:
    """A script element that holds `value` as JSON; nothing in it can end the element. Scripts read it by `withData`."""
    label = f' data-name="{escape(name)}"' if name else ""
    text = to_json(value)
    if len(text) <= PACK_ABOVE:
        return f'<script type="application/json"{label}>{text}</script>'
    packed = base64.b64encode(gzip.compress(text.encode(), compresslevel=9, mtime=0)).decode()
    return f'<script type="text/plain"{label} data-packed>{packed}</script>'


def to_json(value: Any) -> str:
    """Compact JSON that is safe inside a script element; NaN and infinity, which JSON has not, become null."""
    text = json.dumps(_finite(value), separators=(",", ":"), ensure_ascii=False)
    return text.translate({0x3C: "\\u003c", 0x3E: "\\u003e", 0x26: "\\u0026", 0x2028: "\\u2028", 0x2029: "\\u2029"})


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return value


@cache
def asset(name: str) -> str:
    """The text of one of the package's own scripts or styles."""
    return resources.files("mechwork.render").joinpath("assets", *name.split("/")).read_text(encoding="utf-8")


@cache
def _own_script(bundle: Bundle) -> str:
    """One function around the files of a bundle: they share names with each other and with nobody else."""
    own = "\n".join(asset(name) for name in bundle.scripts)
    return _as_script(f'(() => {{\n"use strict";\n{own}\n}})();')


def _as_script(source: str) -> str:
    """`source` as it may stand in a script element: nothing in it ends the element."""
    return source.replace("</script", "<\\/script").replace("<!--", "<\\!--")


@cache
def _vendor(name: str) -> tuple[bytes, str]:
    """A third-party script, gzipped, and its hash."""
    source = _VENDORS[name]()
    return gzip.compress(source.encode(), compresslevel=9, mtime=0), _hash(source)


@cache
def _packed(vendor: str) -> str:
    """A third-party script, packed: the page unpacks it when a figure needs it, and a notebook stays a third
    as large.
    """
    source, found = _vendor(vendor)
    key, packed = f"{vendor}-{hashlib.sha256(found.encode()).hexdigest()[:12]}", base64.b64encode(source).decode()
    licence = _LICENCES[vendor]
    return (
        f'<script type="text/plain" data-vendor="{vendor}" data-key="{key}" data-licence="{licence}">{packed}</script>'
    )


def _plotly() -> str:
    """Without the style sheet that it adds for maps, which no figure here draws and no page allows."""
    from plotly.offline import get_plotlyjs

    return re.sub(r'if\(!document\.getElementById\("[0-9a-f]{64}"\)\)', "if(false)", get_plotlyjs())


def _circuitsvis() -> str:
    """The package's own bundle; its helpers would probe the network or emit an import from a CDN."""
    import circuitsvis

    path = Path(str(circuitsvis.__file__)).parent / "dist" / "cdn" / "iife.js"
    if not path.is_file():
        raise MechworkError(f"circuitsvis has no script at {path}; attention is drawn with circuitsvis>=1.43")
    return path.read_text(encoding="utf-8").replace("//# sourceMappingURL=iife.js.map", "")


_VENDORS = {"plotly": _plotly, "circuitsvis": _circuitsvis}
_LICENCES = {"plotly": "plotly.js, MIT, Plotly Inc.", "circuitsvis": "CircuitsVis, MIT, Alan Cooney"}

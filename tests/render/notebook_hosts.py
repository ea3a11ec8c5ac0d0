"""What a notebook's reader sees, host by host: ``python -m tests.render.notebook_hosts --jupyter DIR [--out DIR]``.

DIR is the ``bin`` folder of an environment with jupyterlab and nbconvert (they are no part of mechwork's own). Opens
the same notebook, made once with a kernel, in JupyterLab trusted and untrusted and as nbconvert's HTML, in headless
chromium with every request but those to the local server aborted. Prints one line per host and keeps screenshots.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat

from mechwork.display import page
from tests.render import synthetic

PORT = 8917
REACHED = """(i) => { const row = [...i.closest('.jp-OutputArea-output, body').querySelectorAll('tbody tr')].at(-1);
row.scrollIntoView(); const r = row.getBoundingClientRect();
    return row.contains(document.elementFromPoint(r.left + 20, r.top + 8)) }"""
"""Whether the last row of the table can be scrolled to."""


def notebook(*, trusted: bool) -> nbformat.NotebookNode:
    """One cell whose output is a circuit, as a kernel leaves it."""
    circuit = synthetic.circuit()
    output = nbformat.v4.new_output(
        "execute_result",
        {"text/html": circuit._repr_html_(), "text/plain": repr(circuit)},
        execution_count=1,
    )
    cell = nbformat.v4.new_code_cell("circuit", execution_count=1, outputs=[output])
    if trusted:
        cell.metadata["trusted"] = True
    return nbformat.v4.new_notebook(cells=[cell])


def look(browser: Any, url: str, out: Path, *, wait: int = 6000) -> dict[str, Any]:
    """Whether the interactive graph answers, whether the picture and the table can be seen, and what was asked for
    outside.
    """
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    tab, outside = context.new_page(), []
    local = ("file:", "data:", "blob:", "about:", f"http://127.0.0.1:{PORT}", f"ws://127.0.0.1:{PORT}")
    tab.route("**/*", lambda route: route.continue_() if route.request.url.startswith(local) else route.abort())
    tab.on("request", lambda request: None if request.url.startswith(local) else outside.append(request.url))
    tab.goto(url)
    tab.wait_for_timeout(wait)
    tab.keyboard.press("Escape")  # JupyterLab asks for a kernel
    tab.wait_for_timeout(500)
    frames = tab.locator("iframe[title='mechwork figure']").count()
    inside = tab.frame_locator("iframe[title='mechwork figure']") if frames else tab
    nodes = inside.locator(".mw-nodes .mw-node").count()
    picture = tab.locator("img[alt*='of the model']")
    seen = {
        "interactive nodes": nodes,
        "picture seen": not frames
        and bool(picture.count())
        and picture.first.evaluate("(i) => i.naturalWidth > 0 && i.checkVisibility()"),
        "table reached": not frames and bool(picture.count()) and picture.first.evaluate(REACHED),
        "table rows": tab.locator("img[alt*='of the model'] ~ * tbody tr").count() if not frames else 0,
        "requests outside": [url for url in outside if "jupyter" not in url],
    }
    tab.screenshot(path=str(out))
    context.close()
    return seen


def main() -> None:
    """Make the notebooks, open them in each host, print what is seen."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jupyter", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("artefacts"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place, sync_playwright() as browsers:
        folder = Path(place)
        home = {
            **os.environ,
            "HOME": place,
            "JUPYTER_CONFIG_DIR": f"{place}/c",
            "JUPYTER_DATA_DIR": f"{place}/d",
            "IPYTHONDIR": f"{place}/i",
        }
        for name in ("trusted", "untrusted"):
            nbformat.write(notebook(trusted=False), folder / f"{name}.ipynb")
        (folder / "page.html").write_text(page(synthetic.circuit()), encoding="utf-8")
        jupyter = options.jupyter
        subprocess.run(
            [jupyter / "jupyter", "trust", folder / "trusted.ipynb"], env=home, check=True, capture_output=True
        )
        subprocess.run(
            [jupyter / "jupyter-nbconvert", "--to", "html", folder / "untrusted.ipynb", "--output", "converted.html"],
            env=home,
            check=True,
            capture_output=True,
        )
        server = subprocess.Popen(
            [jupyter / "jupyter-lab", "--no-browser", "--allow-root", f"--port={PORT}", "--ServerApp.token=",
            "--ServerApp.password=", f"--ServerApp.root_dir={place}"],
            env=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            time.sleep(8)
            browser = browsers.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            places = {
                "browser, file": (folder / "page.html").as_uri(),
                "nbconvert": (folder / "converted.html").as_uri(),
                "JupyterLab, trusted": f"http://127.0.0.1:{PORT}/lab/tree/trusted.ipynb?reset",
                "JupyterLab, untrusted": f"http://127.0.0.1:{PORT}/lab/tree/untrusted.ipynb?reset",
            }
            for host, url in places.items():
                seen = look(
                    browser,
                    url,
                    options.out / f"host-{host.replace(', ', '-').replace(' ', '-')}.png",
                    wait=15000 if "Lab" in host else 3000,
                )
                print(f"{host:<24}", seen, flush=True)
            browser.close()
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()

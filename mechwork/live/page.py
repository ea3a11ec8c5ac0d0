"""The page of a session: one file for both hosts and for a frozen record; without a host nothing on it is live."""

from __future__ import annotations

from typing import Any

from ..render.page.page import Fragment, assemble, embed_json

HOW = (
    "This page is a record: its buttons need the model. To ask further, run <code>mechwork serve gpt2-6l --task ioi"
    "</code> in a terminal, or <code>mw.explore(model, task)</code> in a notebook."
)

BODY = f"""
<main class="lv">
<header class="lv-head"><h1>Live workbench</h1><span id="lv-what" class="mw-muted"></span>
<button type="button" id="lv-tour" aria-expanded="false" aria-controls="lv-guide">Tour</button>
<div class="lv-tools"><span id="lv-status" class="mw-muted"></span><progress id="lv-work" aria-label="work" hidden>
</progress><button type="button" id="lv-cancel" hidden>Cancel</button>
<button type="button" id="lv-undo" disabled>Undo</button><button type="button" id="lv-redo" disabled>Redo</button>
<button type="button" id="lv-pinA" data-live disabled aria-pressed="false">Pin A</button>
<button type="button" id="lv-pinB" data-live disabled aria-pressed="false">Pin B</button>
<button type="button" id="lv-difference" disabled aria-pressed="false">A → B</button>
<button type="button" id="lv-freeze" data-live disabled>Save page</button></div></header>
<section id="lv-guide" class="lv-card" aria-label="tour" hidden><p id="lv-guide-says"></p><div>
<button type="button" id="lv-guide-do" data-live disabled>Do it</button>
<button type="button" id="lv-guide-back">Back</button>
<button type="button" id="lv-guide-next">Next</button><button type="button" id="lv-guide-end">End</button>
<span id="lv-guide-where" class="mw-muted"></span></div></section>
<p id="lv-offline">{HOW}</p>
<p id="lv-error" role="alert" hidden></p>
<section class="lv-card" aria-labelledby="lv-h1">
<h2 id="lv-h1"><span class="lv-step">1</span>Read the prompt. What does the model say next?</h2>
<div class="lv-line"><span>clean</span><div id="lv-clean" class="lv-tokens"></div></div>
<div class="lv-line"><span>other</span><div id="lv-corrupt" class="lv-tokens"></div></div>
<div class="lv-line"><span>spans</span><div id="lv-spans" class="lv-tokens"></div></div>
<div class="lv-says-row"><ol id="lv-top" class="lv-top" aria-label="most probable next tokens"></ol>
<p><span id="lv-metric" class="lv-big"></span> <span id="lv-lead" class="mw-muted"></span></p></div>
<div><button type="button" id="lv-edit" data-live disabled aria-expanded="false"
aria-controls="lv-form">Edit the prompts</button>
<button type="button" id="lv-next" data-live disabled>Next pair</button></div>
<div id="lv-form" role="group" aria-label="prompts of your own" hidden>
<label>clean prompt<textarea id="lv-c1" rows="2"></textarea></label>
<label>other prompt, as long, with another answer<textarea id="lv-c2" rows="2"></textarea></label>
<label>its answer, with the space before it<input id="lv-a1"></label>
<label>the other answer<input id="lv-a2"></label>
<div><button type="button" id="lv-ask">Ask these</button></div></div>
</section>
<div class="lv-body">
<section class="lv-card" aria-labelledby="lv-h2">
<h2 id="lv-h2"><span class="lv-step">2</span>Click a part of the model</h2>
<p class="mw-muted">Each row is a layer, the last on top; each box a head, an MLP, or the stream that enters the layer.
Click a token above to change it there alone.</p>
<div class="lv-grid"><table id="lv-cells" aria-label="parts of the model"></table></div>
<p id="lv-colours" class="mw-muted"></p>
<div><button type="button" id="lv-direct" data-live disabled>Direct shares</button>
<button type="button" id="lv-sweep" data-live disabled>Patch every part (measured)</button>
<button type="button" id="lv-all" aria-pressed="true">At every token</button></div>
<div id="lv-write"><label>or write a place <input id="lv-text" placeholder="m3.n17+20, l3, resid_post.2@END"
autocomplete="off" spellcheck="false"></label>
<button type="button" id="lv-choose" data-live disabled>Choose</button></div>
<div id="lv-features" hidden><label>features at <select id="lv-site"></select></label>
<button type="button" id="lv-active" data-live disabled>Most active ones</button></div>
<p id="lv-changes" class="mw-muted" hidden></p>
</section>
<section class="lv-card" aria-labelledby="lv-h3">
<h2 id="lv-h3"><span class="lv-step">3</span><span id="lv-place">Click a box of the model</span></h2>
<div class="lv-actions" role="toolbar" aria-label="what to do there">
<button type="button" class="main" data-action="ablate" disabled>Ablate<kbd>A</kbd></button>
<button type="button" class="main" data-action="patch" disabled>Patch<kbd>P</kbd></button>
<button type="button" data-action="scale" disabled>Scale</button>
<button type="button" data-action="steer" disabled>Steer<kbd>S</kbd></button>
<button type="button" data-action="restore" id="lv-restore" disabled>Restore<kbd>R</kbd></button>
<button type="button" data-action="attention" id="lv-attention" disabled>Attention</button>
<button type="button" data-action="lens" disabled>Lens<kbd>L</kbd></button></div>
<div class="lv-settings"><label>ablate by <select id="lv-kind"><option value="mean">mean</option>
<option value="zero">zero</option></select></label>
<label>scale × <input id="lv-factor" type="number" min="-10" max="10" step="0.25" value="0.5"></label>
<label>steer by <input id="lv-strength" type="number" min="-10" max="10" step="0.25" value="1"></label></div>
<div id="lv-answer" hidden><p id="lv-says"></p><svg id="lv-scale" viewBox="0 0 300 56" role="img"></svg>
<p id="lv-control" class="mw-muted"></p><ol id="lv-after" class="lv-top" aria-label="next tokens now"></ol>
<div class="lv-code"><pre id="lv-python" tabindex="0" aria-label="the same in Python"></pre>
<button type="button" data-copies="#lv-python">Copy</button></div>
<div class="lv-code" id="lv-cli-row"><pre id="lv-cli" tabindex="0" aria-label="the same in a shell"></pre>
<button type="button" data-copies="#lv-cli">Copy</button></div></div>
<div id="lv-view" hidden></div>
</section></div>
<section class="lv-card" aria-labelledby="lv-h4"><h2 id="lv-h4">The circuit</h2>
<p id="lv-circuit-says" class="mw-muted">Which edges carry the behaviour? Score them all (an estimate), then keep the
strongest and see whether they alone still do it.</p>
<div><label>estimate by <select id="lv-method"><option value="relp">relp (quick)</option>
<option value="eap-ig">EAP-IG, 5 steps (a job)</option></select></label>
<button type="button" id="lv-score" data-live disabled>Score all edges</button>
<label>keep <input id="lv-edges" type="range" min="5" max="400" value="80" disabled>
<span id="lv-edges-n">80</span> edges</label></div>
<div id="lv-parts" hidden><div><button type="button" id="lv-several" aria-pressed="false">Choose several</button>
<button type="button" id="lv-together" disabled>Take out together</button></div>
<div id="lv-nodes" role="group" aria-label="nodes of the circuit"></div>
<details><summary>Edges</summary><div id="lv-edge-list" role="group" aria-label="edges of the circuit"></div></details>
<div class="lv-code"><pre id="lv-circuit-python" tabindex="0" aria-label="the circuit in Python"></pre>
<button type="button" data-copies="#lv-circuit-python">Copy</button></div></div></section>
<section class="lv-card" aria-labelledby="lv-h5"><h2 id="lv-h5">What was done</h2>
<p id="lv-nothing" class="mw-muted">Nothing yet.</p><ol id="lv-history"></ol>
<details><summary>As a Python script</summary><div class="lv-code">
<pre id="lv-script" tabindex="0" aria-label="the session in Python"></pre>
<button type="button" data-copies="#lv-script">Copy</button></div></details></section>
<p id="lv-live" class="lv-hidden" role="status" aria-live="polite"></p>
</main>
"""


def live_page(record: dict[str, Any] | None = None) -> str:
    """The page; with a `record` (see `freeze`) it shows that without a host."""
    kept = "" if record is None else embed_json(record, name="mechwork-live")
    title = "mechwork live" if record is None else f"mechwork: {record['look']['task']} in {record['look']['model']}"
    return assemble(title, [Fragment(BODY + kept, needs=("live",))])

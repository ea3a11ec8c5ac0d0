// How numbers and tokens are shown; the same rules as the other pages' (render/page/text.py).
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]/gu;
const SIGNS = { "\n": "↵", "\r": "↵", "\t": "⇥", "\u2028": "↵", "\u2029": "↵" };

function shown(token, limit = 24) {
  let text = [...token].map((c) => SIGNS[c] ?? c).join("").replace(HIDDEN, "\ufffd").replace(/^ +| +$/g, "") || "␣";
  return text.length > limit ? text.slice(0, limit - 1) + "…" : text;
}

function num(x, signed = false) {
  if (x === null || x === undefined || Number.isNaN(x)) return "n/a";
  const size = Math.abs(x);
  const text = size !== 0 && size < 0.01 ? size.toExponential(1) : size.toFixed(size < 10 ? 2 : 1);
  return (x < 0 ? "\u2212" : signed ? "+" : "") + text;
}

const percent = (p) => (p >= 0.0995 ? `${Math.round(100 * p)} %` : p >= 0.001 ? `${(100 * p).toFixed(1)} %` : "<0.1 %");

function el(tag, options = {}, ...children) {
  const { cls, text, data, ...attributes } = options;
  const made = document.createElement(tag);
  if (cls) made.className = cls;
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(data ?? {})) made.dataset[key] = value;
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("aria-")) made.setAttribute(key, value); // "false" is a value of these
    else if (value !== false && value !== null) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

const bdi = (token) => el("bdi", { text: shown(token) });
const find = (selector) => document.querySelector(selector);

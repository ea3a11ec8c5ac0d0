// The state in the page's address: a link shows what its sender saw. Only what differs from the first state is written.

const HASH_KEYS = ["shown", "nodes", "kinds", "types", "signs", "members", "confidence", "isolated", "collapse", "only", "focus", "to", "pins", "groups", "notes", "roles", "moved"];

function readHash(id) {
  try {
    const part = new URLSearchParams(location.hash.slice(1)).get(id);
    return part ? JSON.parse(part) : null;
  } catch {
    return null;
  }
}

const HASH_REST = 60; // milliseconds between two writings: browsers take no more than 200 in ten seconds
const waiting = new Map(); // by graph: when it was written last, and what still waits

// At once, so that a reload right after a click keeps it (a page that goes can no longer change what is reloaded); what
// changes faster, such as a slider that is dragged, is written when it rests.
function writeHash(id, state, first) {
  const { timer, last = -HASH_REST } = waiting.get(id) ?? {}, rest = last + HASH_REST - performance.now();
  const write = () => {
    waiting.set(id, { last: performance.now() });
    putHash(id, state, first);
  };
  clearTimeout(timer);
  if (rest <= 0) write();
  else waiting.set(id, { last, write, timer: setTimeout(write, rest) });
}

// What still waits is written before the page is left or put aside.
function writeWaiting() {
  for (const { write, timer } of waiting.values()) {
    clearTimeout(timer);
    write?.();
  }
}
window.addEventListener("pagehide", writeWaiting);
document.addEventListener("visibilitychange", () => document.hidden && writeWaiting());

function putHash(id, state, first) {
  const changed = Object.fromEntries(HASH_KEYS.filter((key) => !same(state[key], first[key])).map((key) => [key, state[key]]));
  const parts = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  if (Object.keys(changed).length) parts.set(id, JSON.stringify(changed));
  else parts.delete(id);
  const text = parts.toString();
  if (!text && !location.hash.includes("=")) return;
  try {
    history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
  } catch {
    // a sandboxed frame has no address of its own
  }
}

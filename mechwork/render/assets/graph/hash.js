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

const HASH_REST = 250; // the address is written once the reader rests: browsers take tens of milliseconds for it
const waiting = new Map();

function writeHash(id, state, first) {
  clearTimeout(waiting.get(id)?.timer);
  const write = () => {
    waiting.delete(id);
    putHash(id, state, first);
  };
  waiting.set(id, { write, timer: setTimeout(write, HASH_REST) });
}

// What still waits is written before the page goes.
window.addEventListener("pagehide", () => [...waiting.values()].forEach(({ write, timer }) => (clearTimeout(timer), write())));

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

// Names in nodes: letters stay readable while the graph shrinks, and a node grows as wide as its name, measured and not guessed, as far as its neighbours allow.

const LETTERS = { least: 13, most: 25, seen: 10.5 }; // world units, and pixels on the screen
const KV_SHARE = 0.8; // letters of a key/value group's name, of those of a head's
const PAD = 7, GROWTH = 24, GROWTH_BETWEEN_PLACES = 10; // of the room between two nodes, or a node and an edge, some is left

const lettersAt = (k) => Math.round(2 * Math.min(LETTERS.most, Math.max(LETTERS.least, LETTERS.seen / k))) / 2;

// Width of a name whose letters are one unit high.
const measured = new Map();
let pen = null;
function nameWidth(text, weight) {
  const key = `${weight} ${text}`;
  if (!measured.has(key)) {
    pen ??= document.createElement("canvas").getContext("2d");
    pen.font = `${weight} 100px ${getComputedStyle(document.documentElement).getPropertyValue("--mw-font")}`;
    measured.set(key, pen.measureText(text).width / 100);
  }
  return measured.get(key);
}

// How node `i` is drawn where letters have that size: its width, and by how much a name too long for it is made smaller.
function pillOf(graph, i, letters, text) {
  const kv = graph.type[i] === "kv", ink = (kv ? KV_SHARE * letters : letters) * nameWidth(text, kv ? 400 : 600);
  const most = graph.width[i] + (graph.places.length ? GROWTH_BETWEEN_PLACES : GROWTH);
  return { wide: Math.round(Math.min(most, Math.max(graph.width[i], ink + PAD))), shrink: Math.min(1, (most - PAD / 2) / ink) };
}

// The one way out of this page: a message port that the framing window hands over; a newer one takes its place. Without
// it nothing is live.
const line = { port: null, next: 1, open: new Map() };

window.addEventListener("message", (event) => {
  if (event.source !== window.parent || event.data !== "mechwork-live" || event.ports.length !== 1) return;
  line.port?.close();
  drop();
  line.port = event.ports[0];
  line.port.onmessage = ({ data }) => hear(data);
  connected();
});

function hear(message) {
  if (message.what === "gone") { gone(); return; }
  if (message.what === "hello") { if (screen.lost) connected(); else hush(); return; }
  if (message.what === "silent") { silent(); return; }
  const request = line.open.get(message.id);
  if (!request) return;
  if (message.what === "working" || message.what === "progress") { request.hears?.(message); return; }
  line.open.delete(message.id);
  busy();
  if (message.what === "result") request.done(message);
  else if (message.what === "error") request.fails(new Error(message.message));
  else request.done(null); // cancelled or replaced
}

// One request; resolves with its result, or null when it was cancelled or replaced by a newer one.
function ask(message, hears) {
  if (!line.port) return Promise.resolve(null);
  const id = line.next++;
  return new Promise((done, fails) => {
    line.open.set(id, { done, fails, hears, since: performance.now() });
    busy();
    line.port.postMessage({ id, ...message });
  });
}

// Nobody will answer what is open.
function drop() {
  for (const [, { done }] of line.open) done(null);
  line.open.clear();
  busy();
}

function cancelAll() {
  for (const id of line.open.keys()) line.port.postMessage({ what: "cancel", id });
}

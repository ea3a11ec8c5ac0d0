"use strict";
// Relay between the framed page, which may ask no network, and the server that served this shell.
const frame = document.querySelector("iframe");
const channel = new MessageChannel();
const port = channel.port1;
let client = null;
const early = [];

async function send(message) {
  if (client === null) { early.push(message); return; }
  const cancel = message.what === "cancel";
  const { what, ...rest } = message;
  try {
    const answer = await fetch(cancel ? "/cancel" : "/ask", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...rest, client }),
    });
    if (!answer.ok && !cancel) port.postMessage({ id: message.id, what: "error", message: await answer.text() });
  } catch {
    port.postMessage({ id: message.id, what: "error", message: "The server does not answer. Is it still running?" });
  }
}

port.onmessage = (event) => send(event.data);
const events = new EventSource("/events");
events.addEventListener("hello", (event) => {
  client = JSON.parse(event.data);
  port.postMessage({ what: "hello" });
  for (const message of early.splice(0)) send(message);
});
events.onmessage = (event) => port.postMessage(JSON.parse(event.data));
events.onerror = () => { client = null; port.postMessage({ what: "gone" }); };
frame.addEventListener("load", () => {
  frame.contentWindow.postMessage("mechwork-live", "*", [channel.port2]);
}, { once: true });
frame.src = "/page";

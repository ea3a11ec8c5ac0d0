// Relay between the framed page in the notebook and the kernel. The frame is found by its name, wherever it stands.
function render({ model, el }) {
  const client = Math.random().toString(36).slice(2);
  const channel = new MessageChannel();
  let tries = 0;
  const hand = () => {
    const frame = document.getElementById(model.get("mark"));
    if (!frame) {
      if (tries++ < 100) setTimeout(hand, 100);
      else el.textContent = "The page above is not live here: its frame was not found.";
      return;
    }
    const send = () => frame.contentWindow.postMessage("mechwork-live", "*", [channel.port2]);
    // The page listens once its script has run; before that nobody would take the port.
    frame.addEventListener("load", send, { once: true });
    frame.srcdoc = frame.srcdoc;
  };
  channel.port1.onmessage = (event) => model.send({ ...event.data, client });
  const hear = (message) => { if (message.client === client) channel.port1.postMessage(message); };
  model.on("msg:custom", hear);
  hand();
  return () => { model.off("msg:custom", hear); channel.port1.close(); };
}

export default { render };

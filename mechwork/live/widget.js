// Relay between the framed page in the notebook and the kernel. The frame is found by its name, wherever it stands, and
// gets a new port each time its page is loaded: notebooks take outputs out of the document and put them back.
const SILENT = 4000;

function render({ model, el }) {
  const client = Math.random().toString(36).slice(2);
  const frame = () => document.getElementById(model.get("mark"));
  let port = null, timer = null, tries = 0;
  const tell = (message) => port?.postMessage(message);
  // What the kernel hears it acknowledges at once: silence means that a cell is running, or that the kernel has gone.
  const send = (message, silence = "silent") => {
    try { model.send({ ...message, client }); } catch { tell({ what: "gone" }); return; }
    timer ??= setTimeout(() => { timer = null; tell({ what: silence }); }, SILENT);
  };
  const hear = (message) => {
    if (message.client !== client) return;
    clearTimeout(timer);
    timer = null;
    tell(message.what === "heard" ? { what: "hello" } : message);
  };
  const hand = () => {
    const channel = new MessageChannel();
    port?.close();
    port = channel.port1;
    port.onmessage = (event) => send(event.data);
    frame().contentWindow.postMessage("mechwork-live", "*", [channel.port2]);
  };
  const here = (event) => {
    if (event.data === "mechwork-live-here" && event.source && event.source === frame()?.contentWindow) hand();
  };
  const find = () => {
    if (frame()) hand();
    else if (tries++ < 100) setTimeout(find, 100);
    else el.textContent = "The page above is not live here: its frame was not found.";
  };
  const doubt = () => { clearTimeout(timer); timer = null; send({ what: "ping" }, "gone"); };
  const ends = () => tell({ what: "gone" });
  window.addEventListener("message", here);
  model.on("msg:custom", hear);
  model.on("comm_live_update", doubt);
  model.on("comm:close", ends);
  find();
  return () => {
    window.removeEventListener("message", here);
    for (const [name, listener] of [["msg:custom", hear], ["comm_live_update", doubt], ["comm:close", ends]]) model.off(name, listener);
    clearTimeout(timer);
    port?.close();
  };
}

export default { render };

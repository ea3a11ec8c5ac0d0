// The report as a whole: says what is selected, lets Escape clear it, and marks the section being read.

const line = document.querySelector("[data-mw-selected]");
const selectedView = {
  select(name) {
    line.replaceChildren();
    if (name === null) return;
    const clear = document.createElement("button");
    clear.type = "button";
    clear.className = "mw-button small";
    clear.textContent = "clear";
    clear.setAttribute("aria-label", `Clear the selection ${name}`);
    clear.addEventListener("click", () => mechwork.select(null, null));
    line.append("Selected: ", Object.assign(document.createElement("b"), { textContent: name }), " ", clear);
  },
};
mechwork.register(selectedView);

const links = new Map([...document.querySelectorAll(".mw-contents a")].map((link) => [link.getAttribute("href").slice(1), link]));
const watch = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(entry.target.id)?.setAttribute("aria-current", "true");
    }
  },
  { rootMargin: "-10% 0px -80% 0px" },
);
document.querySelectorAll("main > section").forEach((section) => watch.observe(section));

// A question covers the result that follows it until the reader asks to see. Covered parts keep their place, so that
// figures can be measured, but are neither read aloud nor reached with the keyboard.
for (const part of document.querySelectorAll("[data-mw-question]")) {
  const cover = document.createElement("div"), show = document.createElement("button");
  cover.className = "mw-cover";
  show.type = "button";
  show.className = "mw-reveal";
  show.textContent = "Show the result";
  show.addEventListener("click", () => {
    part.classList.remove("is-covered");
    cover.replaceChildren(Object.assign(document.createElement("p"), { textContent: part.dataset.mwQuestion }));
    cover.classList.add("is-open");
  });
  cover.append(Object.assign(document.createElement("p"), { textContent: part.dataset.mwQuestion }), show);
  part.classList.add("is-covered");
  part.before(cover);
}

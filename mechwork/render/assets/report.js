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

// Rows that stand for a node: choosing one selects the node everywhere; a selection made elsewhere marks the row.

const rows = [...document.querySelectorAll("[data-mw-row]")];
const rowView = {
  select(name) {
    for (const row of rows) row.classList.toggle("is-selected", row.dataset.mwRow === name);
    for (const row of rows) row.querySelector("button[data-mw-select]")?.setAttribute("aria-pressed", String(row.dataset.mwRow === name));
  },
};
mechwork.register(rowView);
rowView.select(null);
for (const row of rows) {
  // Of a card only its name is a button, so that its text can be marked and copied; a row's head also unfolds it.
  (row.matches(".mw-card") ? row.querySelector("[data-mw-select]") : row).addEventListener("click", () => {
    const name = mechwork.selection === row.dataset.mwRow ? null : row.dataset.mwRow;
    rowView.select(name);
    mechwork.select(name, rowView);
  });
}

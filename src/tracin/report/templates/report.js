"use strict";
// Improves tables that are complete without it: sorting by a heading, filtering by text and label.
const button = (text) => {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  return made;
};
// Missing numbers come last, whichever way the others are sorted.
const compare = (a, b, sign) => {
  if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
  return sign * (a < b ? -1 : a > b ? 1 : 0);
};
for (const box of document.querySelectorAll("[data-table]")) {
  const body = box.querySelector("tbody"), rows = [...body.rows], status = box.querySelector("[role=status]");
  const find = box.querySelector("input[type=search]"), only = box.querySelector("input[type=checkbox]");
  const label = box.querySelector("select"), texts = new Map();
  for (const row of rows) texts.set(row, [1, 2, 3].map((at) => row.cells[at].textContent).join(" ").toLowerCase());
  let pair = null;
  box.querySelector(".tools").hidden = false;
  const show = () => {
    const words = find.value.trim().toLowerCase();
    let count = 0;
    for (const row of rows) {
      const { given, suggested, differs } = row.dataset;
      const fits = (!only || !only.checked || differs !== undefined) && (!label || !label.value || given === label.value)
        && (!pair || (differs !== undefined && given === pair.given && suggested === pair.suggested))
        && (!words || texts.get(row).includes(words));
      row.hidden = !fits;
      count += fits;
    }
    status.textContent = `${count} of ${rows.length} rows shown`;
  };
  for (const each of [find, only, label]) if (each) each.addEventListener("input", show);
  for (const head of box.querySelectorAll("thead th[data-sort]")) {
    const made = button(head.textContent), at = head.cellIndex;
    head.replaceChildren(made);
    made.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const sign = before === "descending" || (!before && at === 0) ? 1 : -1;
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const key = (row) => {
        const value = row.cells[at].dataset.v;
        return value === undefined ? row.cells[at].textContent : value === "nan" ? NaN : value === "inf" ? Infinity : value === "-inf" ? -Infinity : +value;
      };
      rows.sort((a, b) => compare(key(a), key(b), sign));
      body.append(...rows);
    });
  }
  for (const item of box.querySelectorAll(".confusions li")) {
    const made = button(item.textContent);
    made.setAttribute("aria-pressed", "false");
    item.replaceChildren(made);
    made.addEventListener("click", () => {
      const isOn = made.getAttribute("aria-pressed") === "true";
      for (const other of box.querySelectorAll(".confusions button")) other.setAttribute("aria-pressed", "false");
      made.setAttribute("aria-pressed", String(!isOn));
      pair = isOn ? null : { given: item.dataset.given, suggested: item.dataset.suggested };
      show();
    });
  }
  show();
}

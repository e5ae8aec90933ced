"use strict";
for (const part of document.querySelectorAll(".sortable")) {
  const body = part.querySelector("tbody");
  const rows = [...body.rows];
  const heads = [...part.querySelectorAll("th")];
  const value = (row, column) => row.cells[column].dataset.value;

  heads.forEach((head, column) => head.addEventListener("click", () => {
    const descending = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    rows.sort((first, second) => {
      const [a, b] = [value(first, column), value(second, column)];
      // Undefined values come last in either order.
      if (a === "" || b === "") return (a === "") - (b === "");
      const order = a.localeCompare(b, undefined, {numeric: true});
      const signed = isNaN(a) || isNaN(b) ? order : a - b;
      return descending ? -signed : signed;
    });
    body.append(...rows);
  }));

  const shown = part.querySelector("output");
  part.querySelector("input").addEventListener("input", (event) => {
    const query = event.target.value.trim().toLowerCase();
    for (const row of rows) {
      row.hidden = !row.textContent.toLowerCase().includes(query);
    }
    const count = rows.filter((row) => !row.hidden).length;
    shown.textContent = query ? `${count} of ${rows.length}` : "";
  });
}

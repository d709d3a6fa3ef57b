"use strict";
document.documentElement.classList.add("scripted");

const table = document.getElementById("layer-table");
const body = table.tBodies[0];
const rows = Array.from(body.rows);
const text = rows.map((row) => row.textContent.toLowerCase());
const search = document.getElementById("search");
const choices = Array.from(document.querySelectorAll("select[data-column]"));
const count = document.getElementById("count");
const more = document.getElementById("more");
const key = (row, column) => row.cells[column].dataset.sort ?? row.cells[column].textContent;

for (const select of choices) {
  const values = new Set(rows.map((row) => key(row, Number(select.dataset.column))));
  if (values.size < 2) { select.closest("label").hidden = true; select.closest("label").style.display = "none"; }
  for (const value of Array.from(values).sort()) select.append(new Option(value, value));
}

let order = rows.map((row, i) => i);
let most = Number(table.dataset.most); // rows to lay out before someone asks for all

function show() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = choices.filter((select) => select.value).map((select) => [Number(select.dataset.column), select.value]);
  let fitting = 0;
  for (const i of order) {
    const fits = words.every((word) => text[i].includes(word)) && wanted.every(([column, value]) => key(rows[i], column) === value);
    fitting += fits;
    rows[i].classList.toggle("hidden", !fits || fitting > most);
  }
  count.textContent = `${fitting} of ${rows.length} layers`;
  more.hidden = fitting <= most;
  more.textContent = `Show all ${fitting}: these are the first ${most}`;
}

function sort(header) {
  const column = header.cellIndex, numeric = header.classList.contains("number");
  const down = header.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const names = new Intl.Collator(undefined, { numeric: true });
  const keys = rows.map((row) => key(row, column));
  order.sort((i, j) => {
    if (numeric && (keys[i] === "" || keys[j] === "")) return (keys[i] === "") - (keys[j] === "") || i - j; // unknown ones last
    const found = numeric ? keys[i] - keys[j] : names.compare(keys[i], keys[j]);
    return (down ? -found : found) || i - j;
  });
  body.append(...order.map((i) => rows[i]));
  show();
}

function showAll() {
  most = Infinity;
  show();
}

search.addEventListener("input", show);
more.addEventListener("click", showAll);
for (const select of choices) select.addEventListener("change", show);
for (const button of table.tHead.querySelectorAll("button"))
  button.addEventListener("click", () => sort(button.closest("th")));
show();

let closed = [];
addEventListener("beforeprint", () => {
  closed = Array.from(document.querySelectorAll("details:not([open])"));
  for (const details of closed) details.open = true;
  showAll();
});
addEventListener("afterprint", () => closed.forEach((details) => { details.open = false; }));

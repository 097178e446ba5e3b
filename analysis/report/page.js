// Draws the figures in the page's colours, on screen and on paper, and sorts the tables.
"use strict";
// Figures are stored in the light theme's colours; a theme says what replaces them.
const light = {};
const dark = JSON.parse(document.getElementById("dark-colours").textContent);
const ink = { "#fffefb": "#ffffff" }; // no tint on paper
const darkScreen = matchMedia("(prefers-color-scheme: dark)");
const PAPER_WIDTH = 660; // pixels: the text width of an A4 or Letter page
const plots = [...document.querySelectorAll(".plot")];

function draw(plot, { theme, width }) {
  const text = plot.parentElement.querySelector("script").textContent;
  const spec = JSON.parse(text.replace(/#[0-9a-f]{6}/g, (colour) => theme[colour] ?? colour));
  const narrow = (width ?? plot.clientWidth) < 560;
  const layout = { ...spec.layout, autosize: width === undefined, width };
  if (narrow) {
    layout.font = { ...layout.font, size: 11 };
    layout.margin = { ...layout.margin, l: 48, r: 8 };
    layout.dragmode = false; // a finger scrolls the page
  }
  const config = { responsive: width === undefined, displayModeBar: false, displaylogo: false };
  return Plotly.react(plot, spec.data, layout, config);
}

function drawAll(options) {
  return Promise.all(plots.map((plot) => draw(plot, options)));
}
const onScreen = () => drawAll({ theme: darkScreen.matches ? dark : light });

onScreen().then(() => document.documentElement.setAttribute("data-drawn", ""));
darkScreen.addEventListener("change", onScreen);
addEventListener("beforeprint", () => {
  drawAll({ theme: ink, width: PAPER_WIDTH });
  document.querySelectorAll("details").forEach((d) => { d.open = true; });
});
addEventListener("afterprint", onScreen);

for (const button of document.querySelectorAll("button[data-save]")) {
  button.addEventListener("click", () => {
    const plot = button.closest("figure").querySelector(".plot");
    Plotly.downloadImage(plot, {
      format: button.dataset.save, filename: plot.id, width: 960, height: plot._fullLayout.height,
      scale: button.dataset.save === "png" ? 2 : 1,
    });
  });
}

// A cell sorts by its data-value when it has one (numbers are shown rounded), else by its text.
const key = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
function compare(a, b) {
  const [x, y] = [Number(a), Number(b)];
  if (a !== "" && b !== "" && !Number.isNaN(x) && !Number.isNaN(y)) return x - y;
  if ((a === "") !== (b === "")) return a === "" ? 1 : -1; // missing values go last
  return a.localeCompare(b, undefined, { numeric: true });
}
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((h) => h.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => (up ? 1 : -1) * compare(key(a, column), key(b, column)));
      table.tBodies[0].append(...rows);
    });
  });
}

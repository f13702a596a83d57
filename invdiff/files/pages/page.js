"use strict";
const root = document.documentElement, data = JSON.parse(document.getElementById("data").textContent);
// A page that half works should say so, to its reader and to a test.
addEventListener("error", event => { root.dataset.error = event.message; });

// Tables: sort within each group by a column, filter by words. The address keeps the order: #sort=-psnr.
const number = cell => cell.dataset.v === undefined ? NaN : cell.dataset.v === "inf" ? Infinity : Number(cell.dataset.v);
const sortTable = (table, key, descending) => {
  const buttons = [...table.querySelectorAll("thead button")], index = buttons.findIndex(button => button.dataset.key === key);
  if (index < 0) return;
  buttons.forEach((button, at) => at === index
    ? button.parentElement.setAttribute("aria-sort", descending ? "descending" : "ascending")
    : button.parentElement.removeAttribute("aria-sort"));
  const sign = descending ? -1 : 1;
  const compare = index === 0
    ? (a, b) => sign * a.cells[0].dataset.v.localeCompare(b.cells[0].dataset.v, undefined, { numeric: true })
    : (a, b) => {
      const x = number(a.cells[index]), y = number(b.cells[index]);
      return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : sign * (x > y ? 1 : x < y ? -1 : 0);  // unknown ones last
    };
  for (const body of table.tBodies) body.append(...[...body.querySelectorAll("tr.row")].sort(compare));
};
const sortFromAddress = () => {
  const asked = /^#sort=(-?)(.+)$/.exec(decodeURIComponent(location.hash));
  if (asked) document.querySelectorAll("table.sortable").forEach(table => sortTable(table, asked[2], asked[1] === "-"));
};
for (const table of document.querySelectorAll("table.sortable")) {
  table.tHead.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (!button) return;
    const up = button.parentElement.getAttribute("aria-sort") === "descending";
    const first = button.dataset.key === "name" && !button.parentElement.hasAttribute("aria-sort");
    const descending = !(up || first);
    sortTable(table, button.dataset.key, descending);
    if (table.id === "cells") history.replaceState(null, "", `#sort=${descending ? "-" : ""}${encodeURIComponent(button.dataset.key)}`);
  });
}
for (const field of document.querySelectorAll("input.filter")) {
  const table = document.getElementById(field.dataset.table), count = field.closest(".tools").querySelector(".count");
  const rows = [...table.querySelectorAll("tr.row")].map(row => {
    const group = row.parentElement.querySelector("tr.group").textContent;
    return [row, `${group} ${row.cells[0].dataset.v}`.toLowerCase()];
  });
  const apply = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const [row, text] of rows) shown += !(row.hidden = !words.every(word => text.includes(word)));
    for (const body of table.tBodies) body.hidden = !body.querySelector("tr.row:not([hidden])");
    count.textContent = shown === rows.length ? `${shown} rows` : `${shown} of ${rows.length} rows`;
  };
  field.addEventListener("input", apply);
  apply();
}
addEventListener("hashchange", sortFromAddress);
sortFromAddress();

const fill = (select, names, chosen) => {
  select.replaceChildren(...names.map((name, index) => new Option(name, index)));
  select.value = chosen;
};

// Pictures: two of a card over each other, cut at a slider.
for (const card of document.querySelectorAll(".card")) {
  const pictures = [...card.querySelectorAll("img[data-name]")], names = pictures.map(picture => picture.dataset.name);
  if (pictures.length < 2) continue;
  const [left, right] = ["left", "right"].map(name => card.querySelector(`select.${name}`));
  const stage = card.querySelector(".stage"), range = stage.querySelector("input");
  const measured = Math.max(0, names.indexOf("measured")), restored = pictures.findIndex(picture => picture.closest(".restoration"));
  const show = () => {
    for (const [select, layer] of [[left, ".over"], [right, ".under"]]) {
      const image = stage.querySelector(layer);
      image.src = pictures[select.value].src;
      image.alt = pictures[select.value].alt;
    }
  };
  fill(left, names, measured);
  fill(right, names, restored < 0 ? 1 : restored);
  left.addEventListener("change", show);
  right.addEventListener("change", show);
  range.addEventListener("input", () => stage.style.setProperty("--at", `${range.value}%`));
  show();
  card.querySelector(".compare").hidden = false;
}

// Image by image: PSNR of two rows of a group, drawn anew at each choice.
const scatter = document.querySelector(".scatter");
if (scatter && data.groups.length) {
  const [which, first, second] = ["which", "first", "second"].map(name => scatter.querySelector(`select.${name}`));
  const drawing = scatter.querySelector(".drawing"), verdict = scatter.querySelector(".verdict");
  const ticks = (low, high) => {
    const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find(factor => factor * power >= rough);
    return Array.from({ length: Math.floor(high / step) - Math.ceil(low / step) + 1 }, (_, k) => (Math.ceil(low / step) + k) * step);
  };
  const draw = () => {
    const group = data.groups[which.value], a = group.rows[first.value], b = group.rows[second.value];
    const points = group.images.map((image, k) => [image, a.psnr[k], b.psnr[k]]).filter(p => p[1] !== null && p[2] !== null);
    const all = points.flatMap(p => [p[1], p[2]]), size = 460, edge = 46;
    if (!points.length) { drawing.replaceChildren(); verdict.textContent = "The two rows share no image."; return; }
    const margin = 0.05 * (Math.max(...all) - Math.min(...all)) || 1, low = Math.min(...all) - margin, high = Math.max(...all) + margin;
    const x = value => edge + (value - low) / (high - low) * (size - edge - 8), y = value => size - x(value);
    const marks = ticks(low, high).map(t => `<line class="grid" x1="${x(t)}" x2="${x(t)}" y1="8" y2="${size - edge}"/>
      <line class="grid" y1="${y(t)}" y2="${y(t)}" x1="${edge}" x2="${size - 8}"/>
      <text x="${x(t)}" y="${size - edge + 16}" text-anchor="middle">${+t.toFixed(6)}</text>
      <text x="${edge - 6}" y="${y(t) + 4}" text-anchor="end">${+t.toFixed(6)}</text>`);
    const dots = points.map(p => `<circle cx="${x(p[1])}" cy="${y(p[2])}" r="4"><title></title></circle>`);
    drawing.innerHTML = `<svg viewBox="0 0 ${size} ${size}" role="img" aria-label="PSNR of two rows, image by image">${marks.join("")}
      <line x1="${x(low)}" y1="${y(low)}" x2="${x(high)}" y2="${y(high)}"/>${dots.join("")}
      <text class="across" x="${size / 2}" y="${size - 8}" text-anchor="middle"></text>
      <text class="up" transform="translate(14 ${size / 2}) rotate(-90)" text-anchor="middle"></text></svg>`;
    const short = text => text.length > 52 ? `${text.slice(0, 50)}..` : text;
    drawing.querySelector(".across").textContent = `${short(a.name)}, PSNR (dB)`;
    drawing.querySelector(".up").textContent = `${short(b.name)}, PSNR (dB)`;
    drawing.querySelectorAll("title").forEach((title, k) => {
      title.textContent = `${points[k][0]}: ${points[k][1].toFixed(2)}, ${points[k][2].toFixed(2)}`;
    });
    const gap = points.reduce((sum, p) => sum + p[2] - p[1], 0) / points.length, wins = points.filter(p => p[2] > p[1]).length;
    verdict.textContent = `${b.name} minus ${a.name}: ${gap >= 0 ? "+" : ""}${gap.toFixed(2)} dB in the mean, better on ${wins} of ${points.length} images.`;
  };
  const choose = () => {
    const rows = data.groups[which.value].rows;
    fill(first, rows.map(row => row.name), Math.min(1, rows.length - 1));
    fill(second, rows.map(row => row.name), 0);
    if (data.compares) { first.value = 0; second.value = rows.length - 1; }
    draw();
  };
  fill(which, data.groups.map(group => group.title), 0);
  which.addEventListener("change", choose);
  first.addEventListener("change", draw);
  second.addEventListener("change", draw);
  scatter.hidden = false;
  choose();
}
root.dataset.ready = "yes";

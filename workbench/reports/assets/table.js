// A tidy table in the page: its columns, its rows, how its numbers are written, and how it is saved.
//
// A Result is {columns, views, rows}; a view names its kind, its metrics, the columns along its axes
// and those that have a picker (workbench/figures/views.py). Names and texts come from anyone: they
// become text nodes or fields of data, never markup and never part of a specification.
"use strict";

const workbench = {};

workbench.GREY = "#8a8a8a";
workbench.CONTROLS = new Set([
  "random", "shuffled", "null", "base", "base again", "random weights", "relabelled", "control",
  "fresh", "chance", "neighbour", "pre-trained neighbour",
]);
workbench.FEW = 20; // numbers along an axis up to which intervals are bars: a band says more than was measured
workbench.SHOWN = 50; // texts or rows shown at a time

// Every column as a function of the row, and what a row shows of itself.
workbench.unpack = (content) => {
  const columns = new Map(Object.entries(content.columns).map(([name, kept]) => [
    name,
    Array.isArray(kept) ? (row) => kept[row] : (row) => (kept.at[row] < 0 ? null : kept.of[kept.at[row]]),
  ]));
  const value = (row, name) => (columns.has(name) ? columns.get(name)(row) : null);
  const words = (name) => content.labels[name] ?? workbench.words(name);
  return { value, words, names: [...columns.keys()], rows: content.rows, views: content.views, begins: content.begins };
};

workbench.decode = async (text) => {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return workbench.unpack(JSON.parse(await new Response(stream).text()));
};

workbench.number = (value) => {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : String(+value.toPrecision(4));
};

// A number that fits a cell.
workbench.brief = (value) => {
  if (typeof value !== "number") return "";
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return String(+value.toFixed(digits));
};

workbench.interval = (datum) => {
  const known = datum.low !== null && datum.high !== null;
  const edges = known ? ` [${workbench.number(datum.low)}, ${workbench.number(datum.high)}]` : "";
  return workbench.number(datum.value) + edges;
};

// The rows of a view that the pickers and the reader's choice of models leave.
workbench.rows = (result, view, metric, picked, hidden) => {
  const found = [];
  const filled = view.filled ?? [], empty = view.empty ?? [];
  for (let row = 0; row < result.rows; row++) {
    const own = result.value(row, "metric");
    if (own !== metric) continue;
    if (hidden.has(result.value(row, "member"))) continue;
    if (filled.some((name) => result.value(row, name) === null)) continue;
    if (empty.some((name) => result.value(row, name) !== null)) continue;
    if (picked.some(([name, value]) => value !== MEAN && result.value(row, name) !== value)) continue;
    found.push(Object.fromEntries(result.names.map((name) => [name, result.value(row, name)])));
  }
  return found;
};

const MEAN = Symbol("mean");

// Rows that agree in all but `names`, as one with their mean.
workbench.averaged = (rows, names, keys) => {
  const groups = new Map();
  for (const row of rows) {
    const key = JSON.stringify(keys.filter((one) => !names.includes(one)).map((one) => row[one]));
    groups.set(key, [...(groups.get(key) ?? []), row]);
  }
  return [...groups.values()].map((group) => {
    const known = group.map((row) => row.value).filter((value) => typeof value === "number");
    const value = known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
    const gone = Object.fromEntries(names.map((name) => [name, null]));
    return { ...group[0], ...gone, value, low: null, high: null, n: known.length };
  });
};

workbench.words = (name) => name.replaceAll("_", " ").replace(":", ": ");

// What every view needs of a row beside its columns.
workbench.ready = (rows, view) => rows.map((row) => ({
  ...row,
  shown: workbench.interval(row),
  base_line: row.baseline === null || row.baseline === undefined ? null : workbench.number(row.baseline),
  control: ["arm", "side"].some((name) => workbench.CONTROLS.has(row[name])),
}));

// Every row of a Result as CSV, as the page has it.
workbench.csv = (names, rows) => {
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [names, ...rows].map((row) => row.map(cell).join(",")).join("\n") + "\n";
};

workbench.save = (text, name) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};

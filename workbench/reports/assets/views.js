// The views of a tidy table: which rows are shown, and how each kind is drawn.
//
// A Result is {columns, views, rows}; a view names its kind, its metrics, the columns along its axes
// and those that have a picker (workbench/figures/views.py). Names and texts come from anyone: they
// become text nodes or fields of data, never markup and never part of a specification.
"use strict";

const workbench = {};

workbench.GREY = "#8a8a8a";
workbench.CONTROLS = new Set([
  "random", "shuffled", "null", "base", "base again", "random weights", "relabelled", "control",
  "fresh", "chance", "neighbour", "pre-trained neighbour", "picked",
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
workbench.MEAN = MEAN;

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

const ink = (element) => getComputedStyle(element).color;

const base = (element, data) => ({
  $schema: "https://vega.github.io/schema/vega-lite/v6.json",
  data: { values: data },
  background: null,
  config: {
    font: "system-ui, sans-serif",
    view: { stroke: null },
    axis: {
      labelColor: ink(element), titleColor: ink(element), domainColor: workbench.GREY,
      tickColor: workbench.GREY, gridColor: workbench.GREY, gridOpacity: 0.2,
      labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", labelLimit: 220,
    },
    legend: {
      labelColor: ink(element), titleColor: ink(element), labelFontSize: 12, titleFontSize: 12,
      titleFontWeight: "normal", titleLimit: 600, orient: "top", labelLimit: 220,
      columns: Math.max(1, Math.floor(element.clientWidth / 190)),
    },
    header: { labelColor: ink(element), titleColor: ink(element), labelFontSize: 12, labelLimit: 300 },
    text: { fontSize: 11 },
  },
});

// Fields to show on hovering: whatever tells this row from the others.
const hover = (view, rows) => {
  const told = ["member", ...(view.filled ?? []), view.style, ...(view.pick ?? []), view.x, view.y, "token"];
  const fields = [...new Set(told)].filter((name) => name && rows.some((row) => row[name] !== null && row[name] !== undefined));
  return [
    ...fields.map((field) => ({ field, title: workbench.words(field), type: "nominal" })),
    { field: "shown", title: "value [95% interval]", type: "nominal" },
    { field: "n", title: "n", type: "nominal" },
    { field: "base_line", title: "base or null", type: "nominal" },
  ];
};

// Okabe and Ito's colours, of what is told apart within a single model.
const OKABE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"];

const coloured = (rows, looks, view) => {
  const members = [...new Set(rows.map((row) => row.member))];
  const look = (name) => looks[name] ?? { colour: "#0072B2", shape: "circle" };
  const ways = [...new Set(rows.filter((row) => !row.control).map((row) => row[view.style]))];
  if (view.kind === "lines" && members.length === 1 && ways.length > 1 && ways.length <= OKABE.length) {
    return {
      colour: {
        condition: { test: "datum.control", value: workbench.GREY },
        field: view.style, type: "nominal", sort: null, title: workbench.words(view.style),
        scale: { domain: ways, range: OKABE.slice(0, ways.length) },
      },
      shape: { value: look(members[0]).shape },
    };
  }
  return {
    colour: {
      condition: { test: "datum.control", value: workbench.GREY },
      field: "member", type: "nominal", sort: null, title: null,
      scale: { domain: members, range: members.map((name) => look(name).colour) },
    },
    shape: {
      field: "member", type: "nominal", sort: null, title: null,
      scale: { domain: members, range: members.map((name) => look(name).shape) },
    },
  };
};

const ready = (rows, view) => rows.map((row) => ({
  ...row,
  shown: workbench.interval(row),
  base_line: row.baseline === null || row.baseline === undefined ? null : workbench.number(row.baseline),
  control: ["arm", "side"].some((name) => workbench.CONTROLS.has(row[name])),
}));

const axis = (title) => ({ title, labelOverlap: true, labelFlush: false });
const spread = (values) => {
  const known = values.filter((value) => typeof value === "number");
  return [Math.min(...known), Math.max(...known)];
};

const kinds = {};

kinds.dots = (element, view, metric, rows, looks) => {
  const { colour, shape } = coloured(rows, looks, view);
  const row = view.style || "member";
  const y = { field: row, type: "nominal", sort: null, axis: { title: view.style ? workbench.words(row) : null } };
  const offset = view.style ? { yOffset: { field: "member", sort: null } } : {};
  const x = { field: "value", type: "quantitative", scale: { zero: false }, axis: axis(metric) };
  const shared = { y, ...offset };
  const known = (name) => rows.some((row) => typeof row[name] === "number");
  return {
    ...base(element, rows),
    width: Math.max(160, Math.min(560, element.clientWidth - 220)),
    height: view.style ? { step: 13, for: "offset" } : { step: 20 },
    layer: [
      ...(known("low") ? [{ mark: { type: "rule", strokeWidth: 1.6 }, encoding: { ...shared, x: { ...x, field: "low" }, x2: { field: "high" }, color: colour } }] : []),
      ...(known("baseline") ? [{ mark: { type: "tick", color: workbench.GREY, thickness: 2, size: 12 }, encoding: { ...shared, x: { ...x, field: "baseline" } } }] : []),
      { mark: { type: "point", filled: true, size: 60, opacity: 1 }, encoding: { ...shared, x, color: colour, shape, tooltip: hover(view, rows) } },
    ],
  };
};

kinds.lines = (element, view, metric, rows, looks) => {
  const { colour, shape } = coloured(rows, looks, view);
  const along = rows.map((row) => row[view.x]);
  const [least, most] = spread(along);
  const log = least > 0 && most / least >= 100;
  const series = new Map();
  for (const row of rows) {
    const key = JSON.stringify([row.member, row[view.style]]);
    series.set(key, (series.get(key) ?? 0) + 1);
  }
  const few = Math.max(...series.values()) <= workbench.FEW;
  const scale = log ? { type: "log" } : { zero: false, nice: false, padding: 8 };
  const x = {
    field: view.x, type: "quantitative", scale,
    axis: { ...axis(view.x_title + (log ? " (log scale)" : "")), ...(along.every(Number.isInteger) ? { tickMinStep: 1, format: "d" } : {}) },
  };
  const y = { field: "value", type: "quantitative", scale: { zero: false }, axis: axis(metric) };
  // One distinction has one legend.
  const twice = colour.field === view.style ? { legend: null } : {};
  const style = view.style ? { strokeDash: { field: view.style, type: "nominal", sort: null, title: workbench.words(view.style), ...twice } } : {};
  const detail = view.style ? { detail: [{ field: "member" }, { field: view.style }] } : {};
  const flat = [...new Set(rows.map((row) => row.baseline))].filter((value) => typeof value === "number");
  const uncertain = !rows.some((row) => typeof row.low === "number") ? null : few
    ? { mark: { type: "rule", strokeWidth: 1.2 }, encoding: { x, y: { ...y, field: "low" }, y2: { field: "high" }, color: colour, ...detail } }
    : { mark: { type: "area", opacity: 0.15 }, encoding: { x, y: { ...y, field: "low" }, y2: { field: "high" }, color: colour, ...detail } };
  return {
    ...base(element, rows),
    width: Math.max(200, Math.min(720, element.clientWidth - 90)),
    height: 260,
    layer: [
      ...(flat.length === 1 ? [{ data: { values: [{ baseline: flat[0] }] }, mark: { type: "rule", color: workbench.GREY, strokeDash: [4, 3] }, encoding: { y: { ...y, field: "baseline" } } }] : []),
      ...(uncertain ? [uncertain] : []),
      { mark: { type: "line", strokeWidth: 2 }, encoding: { x, y, color: colour, ...style, ...detail } },
      { mark: { type: "point", filled: true, size: few ? 45 : 18, opacity: 1 }, encoding: { x, y, color: colour, shape, ...detail, tooltip: hover(view, rows) } },
    ],
  };
};

// A scale for cells: diverging around 0 where both signs occur, else from light to dark.
const cells = (rows) => {
  const [least, most] = spread(rows.map((row) => row.value));
  const end = Math.max(Math.abs(least), Math.abs(most));
  return least < 0 && most > 0
    ? { scheme: "redblue", reverse: true, domain: [-end, end] }
    : { scheme: "viridis", domain: [Math.min(0, least), Math.max(most, 0) || 1] };
};

const grid = (element, view, metric, rows, x, y) => {
  const members = new Set(rows.map((row) => row.member)).size;
  const across = new Set(rows.map((row) => row[view.x])).size;
  const down = new Set(rows.map((row) => row[view.y])).size;
  const room = element.clientWidth - 40;
  const columns = Math.max(1, Math.min(members, Math.floor(room / Math.max(190, 24 * across + 60))));
  const width = Math.max(120, Math.min(32 * across, room / columns - 70));
  const written = rows.some((row) => row.token) || (rows.length <= 300 && width / across >= 24);
  const scale = cells(rows);
  const mark = {
    mark: { type: "rect" },
    encoding: {
      x, y, tooltip: hover(view, rows),
      color: { field: "value", type: "quantitative", scale, legend: { title: metric, gradientLength: 160, orient: "top" } },
    },
  };
  const dark = scale.scheme === "viridis"
    ? "datum.value < " + (scale.domain[0] + 0.6 * (scale.domain[1] - scale.domain[0]))
    : "abs(datum.value) > " + 0.6 * scale.domain[1];
  const text = {
    mark: { type: "text", fontSize: 9.5, limit: 40 },
    encoding: { x, y, text: { field: "label" }, color: { condition: { test: dark, value: "white" }, value: "#222" } },
  };
  for (const row of rows) row.label = row.token ?? workbench.brief(row.value);
  const unit = { width, height: Math.max(40, Math.min(22 * down, 420)), layer: written ? [mark, text] : [mark] };
  if (members < 2) return { ...base(element, rows), ...unit };
  return {
    ...base(element, rows),
    columns,
    facet: { field: "member", type: "nominal", sort: [...new Set(rows.map((row) => row.member))], header: { title: null } },
    spec: unit,
    resolve: { axis: { x: "independent" } },
  };
};

kinds.heat = (element, view, metric, rows) => grid(
  element, view, metric, rows,
  { field: view.x, type: "ordinal", sort: typeof rows[0]?.[view.x] === "number" ? "ascending" : null, axis: { title: view.x_title, labelAngle: -60, labelLimit: 120 } },
  { field: "layer", type: "ordinal", sort: "descending", axis: { title: "layer" } },
);

kinds.matrix = (element, view, metric, rows) => grid(
  element, view, metric, rows,
  { field: view.x, type: "nominal", sort: null, axis: { title: workbench.words(view.x), labelAngle: -40 } },
  { field: view.y, type: "nominal", sort: null, axis: { title: workbench.words(view.y) } },
);

kinds.points = (element, view, metric, rows, looks) => {
  const { colour, shape } = coloured(rows, looks, view);
  const wide = Math.max(200, Math.min(640, element.clientWidth - 100));
  // Where a point stands beside its group's middle means nothing: by its number, not by chance.
  const placed = rows.map((row, i) => ({ ...row, aside: ((i * 0.618034) % 1) - 0.5 }));
  const y = { field: "value", type: "quantitative", scale: { zero: false }, axis: axis(metric) };
  const paired = view.x === "baseline";
  const x = paired
    ? { field: "baseline", type: "quantitative", scale: { zero: false }, axis: axis("base") }
    : { field: view.style || "member", type: "nominal", sort: null, axis: { title: view.style ? workbench.words(view.style) : null, labelAngle: -20 } };
  const [least, most] = spread(rows.flatMap((row) => [row.value, row.baseline]));
  const same = paired ? [{ data: { values: [{ a: least }, { a: most }] }, mark: { type: "line", color: workbench.GREY, strokeDash: [4, 3] }, encoding: { x: { ...x, field: "a" }, y: { ...y, field: "a" } } }] : [];
  return {
    ...base(element, placed),
    width: wide, height: 280,
    layer: [
      ...same,
      {
        mark: { type: "point", filled: true, size: 40, opacity: 0.65 },
        encoding: { x, y, color: colour, shape, tooltip: hover(view, rows), ...(paired ? {} : { xOffset: { field: "aside", type: "quantitative", scale: { domain: [-0.9, 0.9] } } }) },
      },
    ],
  };
};

// The tokens of one prompt, in the colours of their values.
kinds.tokens = (element, view, metric, rows) => {
  const [least, most] = spread(rows.map((row) => row.value));
  const end = Math.max(Math.abs(least), Math.abs(most)) || 1;
  const list = document.createElement("div");
  list.className = "tokens";
  const texts = new Map();
  for (const row of rows) texts.set(row.member, [...(texts.get(row.member) ?? []), row]);
  for (const [member, own] of texts) {
    const line = list.appendChild(document.createElement("p"));
    line.appendChild(document.createElement("strong")).textContent = `${member}: `;
    for (const row of own.sort((a, b) => a.position - b.position)) {
      const token = line.appendChild(document.createElement("span"));
      token.textContent = row.token;
      token.title = `${metric} ${row.shown}`;
      const share = typeof row.value === "number" ? row.value / end : 0;
      // At most so strong that the text on it reads, in a light page and in a dark one.
      const strength = 0.55 * Math.abs(share);
      token.style.background = share < 0 ? `rgb(5 113 176 / ${strength})` : `rgb(202 80 20 / ${strength})`;
    }
  }
  const scale = document.createElement("p");
  scale.className = "soft";
  scale.textContent = `${metric} of each token, from ${workbench.number(least)} to ${workbench.number(most)}: orange above 0, blue below, as strong as it is large. Point at a token for its value.`;
  element.replaceChildren(list, scale);
  return null;
};

// Texts as text, with a box that finds some of them.
kinds.texts = (element, view, metric, rows) => {
  const told = { asked: "Prompt", expected: "Expected", base_said: "Base", said: "Fine-tuned model", text: "Text", word: "Word" };
  const keys = [...(view.filled ?? []), view.style, "task", "arm", "count", "other_count"].filter(Boolean);
  const box = document.createElement("div");
  const label = box.appendChild(document.createElement("label"));
  label.textContent = "Find in these texts ";
  const input = label.appendChild(document.createElement("input"));
  input.type = "search";
  const changed = rows.some((row) => row.baseline !== null && row.baseline !== row.value);
  let only = null;
  if (changed) {
    const second = box.appendChild(document.createElement("label"));
    second.textContent = " Show ";
    only = second.appendChild(document.createElement("select"));
    for (const name of ["lost", "gained", "lost and gained", "all items"]) only.add(new Option(name, name));
    if (!rows.some((row) => row.baseline > row.value)) only.value = "lost and gained";
  }
  const list = box.appendChild(document.createElement("div"));
  list.className = "texts";
  const fill = () => {
    const wanted = input.value.toLowerCase();
    const kept = rows.filter((row) => {
      const lost = row.baseline > row.value, gained = row.baseline < row.value;
      if (only?.value === "lost" && !lost) return false;
      if (only?.value === "gained" && !gained) return false;
      if (only?.value === "lost and gained" && !(lost || gained)) return false;
      return !wanted || Object.keys(told).some((name) => String(row[name] ?? "").toLowerCase().includes(wanted));
    });
    list.replaceChildren();
    const count = list.appendChild(document.createElement("p"));
    count.className = "soft";
    count.setAttribute("role", "status");
    count.textContent = `${kept.length} of ${rows.length}` + (kept.length > workbench.SHOWN ? `; the first ${workbench.SHOWN} are shown` : "");
    for (const row of kept.slice(0, workbench.SHOWN)) {
      const one = list.appendChild(document.createElement("article"));
      const head = one.appendChild(document.createElement("p"));
      head.className = "soft";
      const way = only && row.baseline > row.value ? "lost" : only && row.baseline < row.value ? "gained" : "";
      head.textContent = [row.member, ...new Set(keys.map((name) => (row[name] ?? "") === "" ? "" : `${workbench.words(name)} ${row[name]}`)), way].filter(Boolean).join(" · ");
      const terms = one.appendChild(document.createElement("dl"));
      for (const [name, title] of Object.entries(told)) {
        if (row[name] === null || row[name] === undefined) continue;
        terms.appendChild(document.createElement("dt")).textContent = title;
        terms.appendChild(document.createElement("dd")).textContent = row[name];
      }
    }
  };
  input.addEventListener("input", fill);
  only?.addEventListener("change", fill);
  fill();
  element.replaceChildren(box);
  return null;
};

// What a reader must know of a view: how many items a value is over, what the intervals and the grey are.
workbench.caption = (view, rows) => {
  const counts = [...new Set(rows.map((row) => row.n).filter((n) => typeof n === "number"))].sort((a, b) => a - b);
  const said = [];
  if (counts.length) said.push(`n = ${counts[0]}${counts.length > 1 ? ` to ${counts.at(-1)}` : ""}`);
  if (rows.some((row) => typeof row.low === "number")) said.push("95% intervals");
  const grey = ["dots", "lines"].includes(view.kind) && rows.some((row) => row.control || typeof row.baseline === "number");
  if (grey) said.push("grey: base, null or control");
  return said.length ? `${said.join("; ")}.` : "";
};

// Draw one view into `element`.
workbench.draw = async (element, result, view, metric, picked, hidden, looks) => {
  let rows = workbench.rows(result, view, metric, picked, hidden);
  const means = picked.filter(([, value]) => value === MEAN).map(([name]) => name);
  if (means.length) {
    const keys = ["member", view.style, view.x, view.y, ...(view.pick ?? [])].filter(Boolean);
    rows = workbench.averaged(rows, means, keys);
  }
  // A row without a name for the column that styles it is a row of its own.
  rows = ready(rows, view).map((row) => (view.style ? { ...row, [view.style]: row[view.style] ?? "–" } : row));
  if (!rows.length) {
    element.replaceChildren(document.createTextNode("None of the models that are shown has this."));
    return;
  }
  const words = result.words(metric);
  const spec = kinds[view.kind](element, view, words, rows, looks);
  if (spec === null) return;
  const place = document.createElement("div");
  const note = document.createElement("p");
  note.className = "soft";
  note.textContent = workbench.caption(view, rows);
  element.replaceChildren(place, note);
  spec.description = `${words}: ${rows.length} values; the same numbers stand in the table of all rows.`;
  await vegaEmbed(place, spec, {
    ast: true, renderer: "svg", tooltip: true,
    actions: { export: true, source: false, compiled: false, editor: false },
    logLevel: 1, // errors alone
    downloadFileName: `${metric}`.replace(/[^\w-]+/g, "-"),
  });
  // What a screen reader meets: a menu with a name, and no marks without a value.
  place.querySelector("summary")?.setAttribute("aria-label", `Save this view of ${words} as a picture`);
  for (const mark of place.querySelectorAll("svg [aria-roledescription]:not([aria-label])")) {
    mark.removeAttribute("role");
    mark.removeAttribute("aria-roledescription");
  }
};

// The pickers of a Result and the view they choose, in `element`; returns what draws it again.
workbench.explore = (element, result, hidden, looks) => {
  const choices = result.views.flatMap((view) => view.metrics.map((metric) => ({ view, metric })));
  if (!choices.length) return () => {};
  const controls = document.createElement("div");
  controls.className = "pickers";
  const drawn = document.createElement("div");
  drawn.className = "drawn";
  element.replaceChildren(controls, drawn);
  const select = (title, options, chosen) => {
    const label = controls.appendChild(document.createElement("label"));
    label.textContent = `${title} `;
    const made = label.appendChild(document.createElement("select"));
    for (const [text, value, group] of options) {
      let home = made;
      if (group) home = [...made.children].find((one) => one.label === group) ?? made.appendChild(Object.assign(document.createElement("optgroup"), { label: group }));
      home.appendChild(new Option(text, value));
    }
    made.value = String(chosen);
    return made;
  };
  const over = (view) => ({
    heat: `by layer and ${view.x_title}`, lines: `over ${view.x_title}`, points: "by prompt",
    tokens: "by token", matrix: "as a matrix", texts: "as text",
    dots: view.style ? `by ${workbench.words(view.style)}` : "in one number",
  })[view.kind];
  const first = Math.max(0, choices.findIndex(({ metric, view }) => metric === result.begins.metric && view.kind === result.begins.kind));
  const what = select("Show", choices.map(({ view, metric }, i) => [result.words(metric), i, over(view)]), first);
  let picks = [];
  const again = () => {
    const { view, metric } = choices[+what.value];
    const picked = picks.map(([name, box, values]) => [name, box.value === "mean" ? MEAN : values[+box.value]]);
    return workbench.draw(drawn, result, view, metric, picked, hidden, looks);
  };
  // Of items, the first value under which any was lost: the others have nothing to show at first.
  const telling = (view, metric, name, values, options) => {
    if (view.kind !== "texts") return undefined;
    const rows = workbench.rows(result, view, metric, [], new Set());
    const found = rows.find((row) => typeof row.baseline === "number" && row.baseline > row.value);
    return found && options.find(([, place]) => place === values.indexOf(found[name]));
  };
  const repick = () => {
    const kept = new Map(picks.map(([name, box]) => [name, box.selectedOptions[0]?.textContent]));
    for (const [, box] of picks) box.parentElement.remove();
    const { view, metric } = choices[+what.value];
    picks = (view.pick ?? []).map((name) => {
      const values = [...new Set(workbench.rows(result, view, metric, [], new Set()).map((row) => row[name]))];
      const options = values.map((value, i) => [value === null ? "–" : String(value), i]);
      const mean = (view.mean ?? []).includes(name);
      if (mean) options.unshift([`mean over ${values.length}`, "mean"]);
      const same = options.find(([text]) => text === kept.get(name));
      const begin = options.find(([text]) => text === "tuned") ?? telling(view, metric, name, values, options);
      const box = select(workbench.words(name), options, (same ?? begin ?? options[0])[1]);
      box.addEventListener("change", again);
      return [name, box, values];
    });
    return again();
  };
  what.addEventListener("change", repick);
  repick();
  return again;
};

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

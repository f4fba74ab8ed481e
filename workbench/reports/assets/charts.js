// The charts of a view as Vega-Lite: intervals, lines, maps, points, matrices.
"use strict";

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

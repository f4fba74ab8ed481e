// One view in its place, and the pickers that choose it.
"use strict";

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
  rows = workbench.ready(rows, view).map((row) => (view.style ? { ...row, [view.style]: row[view.style] ?? "–" } : row));
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

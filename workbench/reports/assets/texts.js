// The views that are text: the tokens of a prompt, prompts with their answers, what was written.
"use strict";

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

// What a reader does with the page: find a chapter, choose models, sort and filter tables, explore.
"use strict";

(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const hidden = new Set(); // models that the reader has switched off
  const redraw = new Map(); // chapter -> what draws its view again
  const about = JSON.parse(document.getElementById("about").textContent);
  const result = (chapter) => {
    const kept = chapter.querySelector("script[data-packed]");
    if (!kept) return null;
    chapter.unpacked ??= workbench.decode(kept.textContent.trim());
    return chapter.unpacked;
  };

  // Tables: a button in every heading sorts, a box filters, a button saves.
  const text = (cell) => cell.textContent.trim();
  const value = (string) => {
    const found = string.match(/^[x×]?\s*[+-]?\d+(\.\d+)?(e[+-]?\d+)?/i);
    return found ? parseFloat(found[0].replace(/^[x×]\s*/, "")) : null;
  };
  const order = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x !== null && y !== null) return x - y;
    if (x !== null || y !== null) return x !== null ? -1 : 1;
    return a.localeCompare(b);
  };
  const sortable = (table) => {
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((one) => one.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const rows = [...body.rows].sort((a, b) => order(text(a.cells[column]), text(b.cells[column])));
        body.append(...(down ? rows.reverse() : rows));
      });
    });
  };
  const controlled = (table) => {
    const bar = document.createElement("div");
    bar.className = "bar";
    if (table.tBodies[0].rows.length > 8) {
      const label = bar.appendChild(document.createElement("label"));
      label.textContent = "Filter rows ";
      const input = label.appendChild(document.createElement("input"));
      input.type = "search";
      input.addEventListener("input", () => {
        const wanted = input.value.toLowerCase();
        for (const row of table.tBodies[0].rows) row.classList.toggle("filtered", !text(row).toLowerCase().includes(wanted));
      });
    }
    const save = bar.appendChild(document.createElement("button"));
    save.type = "button";
    save.textContent = "CSV";
    save.setAttribute("aria-label", `Save as CSV: ${table.caption ? text(table.caption) : "table"}`);
    save.addEventListener("click", () => {
      const rows = [...table.tBodies[0].rows].filter((row) => row.checkVisibility()).map((row) => [...row.cells].map(text));
      workbench.save(workbench.csv(all("thead th", table).map(text), rows), `${name(table.closest("[data-name]"))}.csv`);
    });
    table.closest(".scroll").before(bar);
  };
  const name = (chapter) => (chapter?.dataset.name ?? "table").replace(/[^\w.-]+/g, "-");
  for (const table of all("table")) {
    sortable(table);
    controlled(table);
  }

  // Models: what is switched off leaves every view and every table.
  const show = () => {
    for (const row of all("[data-member]")) row.hidden = hidden.has(row.dataset.member);
    for (const table of all("table[data-columns]")) {
      const names = JSON.parse(table.dataset.columns);
      for (const row of table.rows) names.forEach((one, i) => { if (one !== null) row.cells[i].hidden = hidden.has(one); });
    }
    for (const again of redraw.values()) again();
  };
  const toggles = all("button[data-toggle]");
  for (const button of all("button[data-all]")) {
    button.addEventListener("click", () => {
      const on = button.dataset.all === "true";
      for (const one of toggles) {
        one.setAttribute("aria-pressed", String(on));
        if (on) hidden.delete(one.dataset.toggle);
        else hidden.add(one.dataset.toggle);
      }
      show();
    });
  }
  for (const button of toggles) {
    button.addEventListener("click", () => {
      const member = button.dataset.toggle;
      const on = hidden.delete(member);
      if (!on) hidden.add(member);
      button.setAttribute("aria-pressed", String(on));
      show();
    });
  }

  // Every row of a Result, on request.
  const everything = async (chapter) => {
    const found = await result(chapter);
    const place = chapter.querySelector(".everything");
    const filter = place.querySelector("input");
    const body = place.querySelector(".rows");
    const status = place.querySelector("[role=status]");
    const kept = found.names.filter((one) => { for (let i = 0; i < found.rows; i++) if (found.value(i, one) !== null) return true; return false; });
    let by = null, down = false;
    const matching = () => {
      const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      const rows = [];
      for (let i = 0; i < found.rows; i++) {
        if (hidden.has(found.value(i, "member"))) continue;
        const row = kept.map((one) => found.value(i, one));
        const line = row.join(" ").toLowerCase();
        if (wanted.every((word) => line.includes(word))) rows.push(row);
      }
      if (by !== null) rows.sort((a, b) => (down ? -1 : 1) * order(String(a[by] ?? ""), String(b[by] ?? "")));
      return rows;
    };
    const fill = () => {
      const rows = matching();
      status.textContent = `${rows.length} of ${found.rows} rows` + (rows.length > 100 ? "; the first 100 are shown" : "");
      const table = document.createElement("table");
      const head = table.createTHead().insertRow();
      kept.forEach((one, column) => {
        const cell = head.appendChild(document.createElement("th"));
        cell.scope = "col";
        if (by === column) cell.setAttribute("aria-sort", down ? "descending" : "ascending");
        const button = cell.appendChild(document.createElement("button"));
        button.type = "button";
        button.className = "sort";
        button.textContent = workbench.words(one);
        button.addEventListener("click", () => { down = by === column && !down; by = column; fill(); });
      });
      const lines = table.createTBody();
      for (const row of rows.slice(0, 100)) {
        const line = lines.insertRow();
        for (const one of row) {
          const cell = line.insertCell();
          cell.textContent = one === null ? "" : workbench.number(one);
          if (cell.textContent.length > 40) cell.className = "long";
        }
      }
      body.replaceChildren(table);
    };
    filter.addEventListener("input", fill);
    place.querySelector("button.save").addEventListener("click", () => workbench.save(workbench.csv(kept, matching()), `${name(chapter)}.csv`));
    fill();
    return fill;
  };

  // Chapters: drawn when they are opened.
  const opened = async (chapter) => {
    if (redraw.has(chapter) || !chapter.querySelector("script[data-packed]")) return;
    redraw.set(chapter, () => {});
    const found = await result(chapter);
    const place = chapter.querySelector(".explorer");
    const view = workbench.explore(place, found, hidden, about.looks);
    redraw.set(chapter, view);
    const rows = chapter.querySelector("details.everything");
    let fill = null;
    rows.addEventListener("toggle", async () => {
      if (!rows.open || fill) return;
      fill = await everything(chapter);
      redraw.set(chapter, () => { view(); fill(); });
    });
  };
  for (const chapter of all("details.chapter")) {
    chapter.addEventListener("toggle", () => chapter.open && opened(chapter));
    if (chapter.open) opened(chapter);
  }
  const toTarget = () => {
    const place = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!place) return;
    const chapter = place.closest("details.chapter");
    if (chapter) chapter.open = true;
    place.scrollIntoView();
  };
  addEventListener("hashchange", toTarget);
  toTarget();

  // Search: what of the page holds the words; contents and chapters without them step back.
  const searching = (search) => {
    const found = document.getElementById("found");
    const entries = all("nav a[href^='#']").map((link) => {
      const place = document.getElementById(link.hash.slice(1));
      return { link, place: place.closest("details.chapter, section") };
    });
    search.addEventListener("input", () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const { link, place } of entries) {
        place.plain ??= all("h2, h3, p, li, caption, th, td, figcaption, summary, dd", place).map(text).join(" ").toLowerCase();
        const has = words.every((word) => place.plain.includes(word));
        link.parentElement.hidden = !has;
        place.classList.toggle("filtered", !has);
        count += has;
      }
      found.textContent = words.length ? `${count} of ${entries.length} parts of this page` : "";
    });
  };
  const search = document.getElementById("search"); // a page of one Result has none
  if (search) searching(search);

  for (const one of all(".needs-script")) one.hidden = false;
  let width = innerWidth;
  addEventListener("resize", () => {
    if (Math.abs(innerWidth - width) < 40) return;
    width = innerWidth;
    for (const again of redraw.values()) again();
  });
})();

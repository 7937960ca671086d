"use strict";
(() => {
  const EVERY = 3000; // milliseconds between looks at the runs
  const by = (id) => document.getElementById(id);
  const make = (name, text, look) => {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    if (look) element.className = look;
    return element;
  };
  const rows = new Map();
  const figure = (v, digits = 1) => (v === null || v === undefined ? "\u2013" : v.toLocaleString("en", { maximumFractionDigits: digits }));

  const addRow = (run) => {
    const row = make("tr");
    const box = make("input");
    Object.assign(box, { type: "checkbox", name: "run", value: run.name });
    box.setAttribute("aria-label", `Compare ${run.name}`);
    const link = make("a", run.name);
    link.href = "/report?run=" + encodeURIComponent(run.name);
    const cells = ["", "", "", "num", "num", "num", "num", "", ""].map((look) => make("td", "", look));
    cells[0].append(box);
    cells[1].append(link);
    row.append(...cells);
    by("runs").append(row);
    rows.set(run.name, cells);
  };

  const showRuns = (runs) => {
    const where = by("where");
    for (const run of runs) {
      if (!rows.has(run.name)) addRow(run);
      const cells = rows.get(run.name);
      const values = [run.status, figure(run.epoch, 0), figure(run.loss, 2), figure(run.knn), figure(run.images_per_s, 0), run.health, run.score];
      values.forEach((value, i) => { cells[i + 2].textContent = value; });
      if (run.searchable && ![...where.options].some((option) => option.value === run.name)) {
        const option = make("option", run.name);
        option.value = run.name;
        where.append(option);
      }
    }
    by("fresh").textContent = `${runs.length} ${runs.length === 1 ? "run" : "runs"}, looked at ${new Date().toLocaleTimeString()}`;
  };

  const look = async () => {
    try {
      showRuns(await (await fetch("/runs.json")).json());
    } catch {
      by("fresh").textContent = "The server does not answer.";
    }
    setTimeout(look, EVERY);
  };

  const search = async (file) => {
    const found = by("found");
    if (!file) return;
    found.replaceChildren(make("p", "Searching \u2026"));
    const answer = await fetch("/search?run=" + encodeURIComponent(by("where").value), { method: "POST", body: file });
    const result = await answer.json();
    if (result.error) { found.replaceChildren(make("p", result.error, "warning")); return; }
    found.replaceChildren(...result.matches.map((match) => {
      const holder = make("figure", undefined, "match");
      const picture = make("img");
      picture.src = match.picture;
      picture.alt = "";
      holder.append(picture, make("figcaption", `${match.similarity.toFixed(3)} ${match.name}`));
      return holder;
    }));
  };

  const drop = by("drop");
  by("file").addEventListener("change", (e) => search(e.target.files[0]));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (e) => { e.preventDefault(); drop.classList.toggle("over", kind === "dragover"); });
  }
  drop.addEventListener("drop", (e) => search(e.dataTransfer.files[0]));
  look();
})();

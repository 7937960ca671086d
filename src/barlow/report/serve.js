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
  const mostRuns = +by("choice").dataset.most;
  const mostBytes = +by("file").dataset.most;
  let asked; // the image that was searched for last
  const figure = (v, digits = 1) => (v === null || v === undefined ? "\u2013"
    : v.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }));

  const addRow = (run) => {
    const row = make("tr");
    const box = make("input");
    Object.assign(box, { type: "checkbox", name: "run", value: run.name });
    box.setAttribute("aria-label", `Compare ${run.name}`);
    const link = make("a", run.name);
    link.href = "/report?run=" + encodeURIComponent(run.name);
    box.addEventListener("change", count);
    const cells = ["", "", "", "num", "num", "num", "num", "", ""].map((look) => make("td", "", look));
    cells[0].append(box);
    cells[1].append(link);
    row.append(...cells);
    by("runs").append(row);
    rows.set(run.name, cells);
  };

  const count = () => {
    const chosen = document.querySelectorAll("#runs input:checked").length;
    by("compare").disabled = chosen < 1 || chosen > mostRuns;
    by("compare").textContent = chosen > mostRuns ? `Choose ${mostRuns} runs at most` : "Show the chosen runs";
  };

  const dropRow = (name) => { // the run's folder is gone
    rows.get(name)[0].parentElement.remove();
    rows.delete(name);
    for (const option of [...by("where").options]) if (option.value === name) option.remove();
    count();
  };

  const showRuns = (runs) => {
    const where = by("where");
    for (const name of [...rows.keys()]) if (!runs.some((run) => run.name === name)) dropRow(name);
    for (const run of runs) {
      if (!rows.has(run.name)) addRow(run);
      const cells = rows.get(run.name);
      const values = [run.status, figure(run.epoch, 0), figure(run.loss, 2), figure(run.knn), figure(run.images_per_s, 0), run.health || "", run.trouble || run.score || ""];
      values.forEach((value, i) => { cells[i + 2].textContent = value; });
      if (run.searchable && ![...where.options].some((option) => option.value === run.name)) {
        const option = make("option", run.name);
        option.value = run.name;
        where.append(option);
      }
    }
    by("none").hidden = runs.length > 0;
    by("choice").hidden = runs.length === 0;
    by("unsearchable").hidden = where.options.length > 0;
    by("search").hidden = where.options.length === 0;
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

  const ask = async (address, body) => {
    try {
      return await (await fetch(address, { method: "POST", body })).json();
    } catch {
      return { error: "The server does not answer." };
    }
  };

  const search = async (file) => {
    const found = by("found");
    if (!file) return;
    asked = file;
    if (file.size > mostBytes) { found.replaceChildren(make("p", `an image may have ${mostBytes / 1e6} MB at most`, "warning")); return; }
    found.replaceChildren(make("p", "Searching \u2026"));
    const form = new FormData();
    form.append("image", file);
    const result = await ask("/search?run=" + encodeURIComponent(by("where").value), form);
    if (result.error) { found.replaceChildren(make("p", result.error, "warning")); return; }
    found.replaceChildren(...result.matches.map((match) => {
      const holder = make("figure", undefined, "match");
      const picture = make("img");
      picture.src = match.picture;
      picture.alt = "";
      const caption = make("figcaption");
      caption.append(make("b", match.name), make("div", `cosine ${match.similarity.toFixed(3)}`));
      holder.append(picture, caption);
      return holder;
    }));
  };

  const drop = by("drop");
  by("file").addEventListener("change", (e) => search(e.target.files[0]));
  by("where").addEventListener("change", () => search(asked));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (e) => { e.preventDefault(); drop.classList.toggle("over", kind === "dragover"); });
  }
  drop.addEventListener("drop", (e) => search(e.dataTransfer.files[0]));
  look();
})();

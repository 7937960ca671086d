"use strict";
(() => {
  const root = document.documentElement;
  const tip = document.getElementById("tip");
  const make = (name, text, look) => {
    const element = document.createElement(name);
    if (text) element.textContent = text;
    if (look) element.className = look;
    return element;
  };
  const style = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // ---- light and dark -------------------------------------------------------------------------------------
  const darkSystem = matchMedia("(prefers-color-scheme: dark)");
  const redraws = [];
  const redrawAll = () => redraws.forEach((draw) => draw());
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : darkSystem.matches;
    root.dataset.theme = dark ? "light" : "dark";
    redrawAll();
  });
  darkSystem.addEventListener("change", redrawAll);

  // ---- the tip that follows the pointer -------------------------------------------------------------------
  const place = (x, y) => {
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = x + 16 + box.width > innerWidth ? x - 12 - box.width : x + 16;
    tip.style.left = Math.max(4, left) + "px";
    tip.style.top = Math.max(4, Math.min(y + 14, innerHeight - box.height - 6)) + "px";
  };
  const hideTip = () => { tip.hidden = true; };
  addEventListener("scroll", hideTip, { passive: true });
  const figure = (v) => {
    const size = Math.abs(v);
    return v === 0 || (size >= 1e-3 && size < 1e6) ? String(+v.toPrecision(4)) : v.toExponential(1);
  };

  // ---- line charts: values under the pointer, or under the arrow keys -------------------------------------
  for (const chart of document.querySelectorAll("svg.chart")) {
    const lines = JSON.parse(chart.dataset.lines);
    const [low, high, start, stop, log] = JSON.parse(chart.dataset.x);
    const cursor = chart.querySelector(".cursor");
    const at = (x) => {
      const share = log ? Math.log(x / low) / Math.log(high / low) : (x - low) / (high - low);
      return start + share * (stop - start);
    };
    const stops = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
    let current = stops.length - 1;
    const nearest = (values, wanted) => {
      let best = 0;
      for (let i = 1; i < values.length; i++) if (Math.abs(at(values[i]) - wanted) < Math.abs(at(values[best]) - wanted)) best = i;
      return best;
    };
    const show = (position, clientX, clientY) => {
      current = nearest(stops, position);
      const x = at(stops[current]);
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      cursor.setAttribute("visibility", "visible");
      tip.replaceChildren(make("div", `${chart.dataset.xLabel} ${figure(stops[current])}`));
      for (const line of lines) {
        const i = nearest(line.x, x);
        if (Math.abs(at(line.x[i]) - x) < 12) tip.append(make("div", `${line.n}: ${figure(line.y[i])}`, `key s${line.c}`));
      }
      place(clientX, clientY);
    };
    const leave = () => { hideTip(); cursor.setAttribute("visibility", "hidden"); };
    const unit = () => chart.viewBox.baseVal.width / chart.getBoundingClientRect().width;
    chart.addEventListener("pointermove", (e) => show((e.clientX - chart.getBoundingClientRect().left) * unit(), e.clientX, e.clientY));
    chart.addEventListener("pointerleave", leave);
    chart.addEventListener("blur", leave);
    chart.addEventListener("keydown", (e) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
      if (!step) return;
      e.preventDefault();
      const x = at(stops[Math.max(0, Math.min(stops.length - 1, current + step))]);
      const box = chart.getBoundingClientRect();
      show(x, box.left + x / unit(), box.top + box.height / 3);
    });
  }

  // ---- heat maps: the value under the pointer, or where the arrow keys have led -----------------------------
  const bytes = (text, Kind) => new Kind(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  for (const heat of document.querySelectorAll(".heat")) {
    const side = +heat.dataset.side;
    const values = bytes(heat.dataset.values, Int8Array);
    const inside = (v) => Math.min(side - 1, Math.max(0, Math.floor(v)));
    let row = 0, column = 0;
    const show = (x, y) => {
      tip.replaceChildren(make("div", `row ${row}, column ${column}: ${(values[row * side + column] / 127).toFixed(2)}`));
      place(x, y);
    };
    heat.addEventListener("pointermove", (e) => {
      const box = heat.getBoundingClientRect();
      column = inside((e.clientX - box.left) / box.width * side);
      row = inside((e.clientY - box.top) / box.height * side);
      show(e.clientX, e.clientY);
    });
    heat.addEventListener("keydown", (e) => {
      const [right, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key] || [0, 0];
      if (!right && !down) return;
      e.preventDefault();
      column = inside(column + right);
      row = inside(row + down);
      const box = heat.getBoundingClientRect();
      show(box.left + (column + 0.5) / side * box.width, box.top + (row + 0.5) / side * box.height);
    });
    heat.addEventListener("pointerleave", hideTip);
    heat.addEventListener("blur", hideTip);
  }

  // ---- maps -----------------------------------------------------------------------------------------------
  const galleries = JSON.parse(document.getElementById("galleries").textContent);
  const maps = [];
  const byCanvas = new Map();
  // Fourteen hues of like weight; classes beyond them share a hue, and the legend still tells them apart.
  const HUES = [212, 24, 130, 280, 46, 180, 335, 95, 250, 8, 155, 305, 70, 230];

  class FeatureMap {
    constructor(canvas, data) {
      this.canvas = canvas;
      this.holder = canvas.closest("figure");
      this.pen = canvas.getContext("2d");
      this.data = data;
      this.coords = Float32Array.from(bytes(data.coords, Uint16Array), (v) => v / 65535);
      this.labels = bytes(data.labels, Int16Array);
      this.neighbours = bytes(data.neighbours, Uint16Array);
      this.cosines = bytes(data.cosines, Int16Array);
      this.still = document.createElement("canvas"); // everything but the marks of pointer and choice
      this.hover = -1;
      this.chosen = -1;
      this.only = -1; // the one class in view, -1 for all
      this.pointers = new Map();
      this.wide = this.high = 0;
      this.coords.forEach((v, i) => { if (i % 2) this.high = Math.max(this.high, v); else this.wide = Math.max(this.wide, v); });
      this.showAll();
      this.groupByLabel();
      this.buildIndex();
      this.legend();
      this.listen();
      this.loadSheets();
    }

    showAll() { this.scale = 1; this.x = this.wide / 2; this.y = this.high / 2; }

    groupByLabel() {
      this.groups = new Map();
      for (let i = 0; i < this.data.n; i++) {
        const label = this.labels[i];
        if (!this.groups.has(label)) this.groups.set(label, []);
        this.groups.get(label).push(i);
      }
    }

    buildIndex() { // points by cell of a 64 x 64 grid, for the nearest one in constant time
      this.cells = Array.from({ length: 4096 }, () => []);
      for (let i = 0; i < this.data.n; i++) this.cells[this.cell(this.coords[2 * i], this.coords[2 * i + 1])].push(i);
    }

    cell(x, y) {
      const clamp = (v) => Math.min(63, Math.max(0, Math.floor(v * 64)));
      return clamp(y) * 64 + clamp(x);
    }

    loadSheets() { // the pictures that stand in the style of the page, once more for drawing
      this.sheets = [];
      if (!this.data.thumb) return;
      if (this.data.thumb <= 32) this.holder.classList.add("small");
      const count = Math.ceil(Math.ceil(this.data.n / this.data.columns) / this.data.rows);
      for (let i = 0; i < count; i++) {
        const styled = make("i", "", "sheet" + i);
        this.holder.append(styled);
        const sheet = new Image();
        sheet.onload = () => this.later();
        sheet.src = getComputedStyle(styled).backgroundImage.replace(/^url\(["']?|["']?\)$/g, "");
        styled.remove();
        this.sheets.push(sheet);
      }
    }

    tile(i) { // sheet, column and row of a thumbnail
      const row = Math.floor(i / this.data.columns);
      return [Math.floor(row / this.data.rows), i % this.data.columns, row % this.data.rows];
    }

    name(i) {
      const label = this.data.classes[this.labels[i]];
      return (label === undefined ? "" : label + ": ") + this.data.keys[i];
    }

    // -- geometry: data in [0, 1]^2, the canvas in CSS pixels with a margin --
    get side() { return Math.min((this.width - 32) / Math.max(this.wide, 0.05), (this.height - 32) / Math.max(this.high, 0.05)); }
    toScreen(i) {
      const [ox, oy, s] = this.frame();
      return [ox + this.coords[2 * i] * s, oy + this.coords[2 * i + 1] * s];
    }
    frame() { // screen = offset + factor * data
      const s = this.side * this.scale;
      return [this.width / 2 - this.x * s, this.height / 2 - this.y * s, s];
    }
    toData(sx, sy) {
      return [this.x + (sx - this.width / 2) / this.side / this.scale, this.y + (sy - this.height / 2) / this.side / this.scale];
    }

    nearestTo(sx, sy, radius) {
      const reach = radius / this.side / this.scale;
      const [x, y] = this.toData(sx, sy);
      let best = -1, least = reach * reach;
      const first = this.cell(x - reach, y - reach), last = this.cell(x + reach, y + reach);
      for (let row = first >> 6; row <= last >> 6; row++) for (let column = first & 63; column <= (last & 63); column++) {
        for (const i of this.cells[row * 64 + column]) {
          if (this.only >= 0 && this.labels[i] !== this.only) continue;
          const dx = this.coords[2 * i] - x, dy = this.coords[2 * i + 1] - y;
          const distance = dx * dx + dy * dy;
          if (distance < least) { least = distance; best = i; }
        }
      }
      return best;
    }

    colour(label, alpha) {
      if (label < 0) return `hsl(212 12% ${this.dark ? 70 : 42}% / ${alpha})`;
      const hue = HUES[label % HUES.length];
      return this.dark ? `hsl(${hue} 62% 68% / ${alpha})` : `hsl(${hue} 58% 40% / ${alpha})`;
    }

    // -- drawing --
    resize() {
      this.width = this.canvas.clientWidth;
      this.height = Math.round(Math.min(Math.max(this.width * 0.95 * this.high, this.width * 0.55, 300), 600));
      const ratio = devicePixelRatio || 1;
      for (const c of [this.canvas, this.still]) {
        c.width = this.width * ratio;
        c.height = this.height * ratio;
      }
      this.canvas.style.height = this.height + "px";
      this.ratio = ratio;
    }

    redraw() {
      if (!this.width || this.canvas.clientWidth !== this.width) this.resize();
      this.dark = root.dataset.theme ? root.dataset.theme === "dark" : darkSystem.matches;
      if (this.printing) this.dark = false;
      const pen = this.still.getContext("2d");
      pen.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
      pen.clearRect(0, 0, this.width, this.height);
      const seen = this.visible();
      const pictures = this.sheets.length && this.sheets.every((sheet) => sheet.complete) && seen.count * 700 < this.width * this.height;
      for (const [label, points] of this.groups) {
        const faded = this.only >= 0 && label !== this.only;
        if (pictures && !faded) continue;
        this.drawDots(pen, points, this.colour(faded ? -1 : label, faded ? 0.13 : 0.78), seen.count);
      }
      if (pictures) this.drawPictures(pen, seen.points);
      this.mark();
    }

    visible() { // how many points are in the frame, and which while they are few enough to show as pictures
      const points = [];
      const [ox, oy, s] = this.frame();
      let count = 0;
      for (let i = 0; i < this.data.n; i++) {
        if (this.only >= 0 && this.labels[i] !== this.only) continue;
        const x = ox + this.coords[2 * i] * s, y = oy + this.coords[2 * i + 1] * s;
        if (x > -20 && y > -20 && x < this.width + 20 && y < this.height + 20 && count++ < 2000) points.push(i);
      }
      return { count, points };
    }

    drawDots(pen, points, colour, count) {
      const size = Math.max(1.6, Math.min(7, 130 / Math.sqrt(count + 1)));
      const [ox, oy, s] = this.frame();
      pen.fillStyle = colour;
      pen.beginPath();
      for (const i of points) {
        const x = ox + this.coords[2 * i] * s, y = oy + this.coords[2 * i + 1] * s;
        if (x < -9 || y < -9 || x > this.width + 9 || y > this.height + 9) continue;
        if (size < 3) pen.fillRect(x - size / 2, y - size / 2, size, size); // squares: 50,000 of them stay fluid
        else { pen.moveTo(x + size / 2, y); pen.arc(x, y, size / 2, 0, 7); }
      }
      pen.fill();
    }

    drawPictures(pen, points) {
      const side = Math.max(18, Math.min(64, this.data.thumb * 2, 0.8 * Math.sqrt(this.width * this.height / (points.length + 1))));
      for (const i of points) {
        const [x, y] = this.toScreen(i);
        pen.fillStyle = this.colour(this.labels[i], 1);
        pen.fillRect(x - side / 2 - 1.5, y - side / 2 - 1.5, side + 3, side + 3);
        this.picture(pen, i, x - side / 2, y - side / 2, side);
      }
    }

    picture(pen, i, x, y, side) {
      const t = this.data.thumb;
      pen.imageSmoothingEnabled = t > 32;
      const [sheet, column, row] = this.tile(i);
      pen.drawImage(this.sheets[sheet], column * t, row * t, t, t, x, y, side, side);
    }

    mark() { // the still picture with the marks of choice and pointer on it
      const pen = this.pen;
      pen.setTransform(1, 0, 0, 1, 0, 0);
      pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
      pen.drawImage(this.still, 0, 0);
      pen.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
      const ink = this.printing ? "#000" : style("--ink");
      if (this.chosen >= 0) {
        const [x, y] = this.toScreen(this.chosen);
        pen.strokeStyle = ink;
        pen.lineWidth = 0.8;
        pen.beginPath();
        for (const j of this.near(this.chosen)) { pen.moveTo(x, y); pen.lineTo(...this.toScreen(j)); }
        pen.stroke();
        this.ring(this.chosen, 8, 2.2, ink);
      }
      if (this.hover >= 0) this.ring(this.hover, 6, 1.4, ink);
    }

    ring(i, radius, width, ink) {
      const [x, y] = this.toScreen(i);
      this.pen.strokeStyle = ink;
      this.pen.lineWidth = width;
      this.pen.beginPath();
      this.pen.arc(x, y, radius, 0, 7);
      this.pen.stroke();
    }

    later() { // at most one drawing per frame
      if (this.waiting) return;
      this.waiting = true;
      requestAnimationFrame(() => { this.waiting = false; this.redraw(); });
    }

    // -- choosing --
    near(i) { return this.neighbours.subarray(i * this.data.k, (i + 1) * this.data.k); }

    thumb(i) {
      const [sheet, column, row] = this.tile(i);
      const element = make("button", "", `thumb sheet${sheet}` + (this.data.thumb <= 32 ? " small" : ""));
      element.type = "button";
      element.style.setProperty("--x", column);
      element.style.setProperty("--y", row);
      element.title = this.name(i);
      element.setAttribute("aria-label", this.name(i));
      return element;
    }

    choose(i, spread = true) {
      this.chosen = i;
      const panel = this.holder.querySelector(".chosen");
      panel.replaceChildren();
      if (i >= 0) {
        const title = make("div");
        title.append(make("b", this.name(i)), ` and its ${this.data.k} nearest neighbours, cosine ${this.cosine(i, 0)} to ${this.cosine(i, this.data.k - 1)}`);
        panel.append(title);
        if (this.data.thumb) panel.append(this.strip(i));
      }
      this.keepInView(i);
      this.redraw();
      // The same images in another run: choose it there too, so that neighbourhoods can be compared.
      if (spread) for (const other of maps) if (other !== this && i >= 0 && other.data.keys[i] === this.data.keys[i]) other.choose(i, false);
    }

    strip(i) {
      const strip = make("div", "", "strip");
      strip.append(this.thumb(i), make("span", "", "arrow"));
      this.near(i).forEach((j) => {
        const small = this.thumb(j);
        if (this.labels[j] !== this.labels[i]) small.classList.add("other");
        small.addEventListener("click", () => this.choose(j));
        strip.append(small);
      });
      return strip;
    }

    cosine(i, rank) { return (this.cosines[i * this.data.k + rank] / 10000).toFixed(2); }

    keepInView(i) {
      if (i < 0 || !this.width) return;
      const [x, y] = this.toScreen(i);
      if (x < 10 || y < 10 || x > this.width - 10 || y > this.height - 10) {
        this.x = this.coords[2 * i];
        this.y = this.coords[2 * i + 1];
      }
    }

    walk(dx, dy) { // the nearest point within 60 degrees of a direction
      const from = this.chosen >= 0 ? this.toScreen(this.chosen) : [this.width / 2, this.height / 2];
      let best = -1, least = Infinity;
      for (let i = 0; i < this.data.n; i++) {
        if (i === this.chosen || (this.only >= 0 && this.labels[i] !== this.only)) continue;
        const [x, y] = this.toScreen(i);
        const along = (x - from[0]) * dx + (y - from[1]) * dy;
        const distance = Math.hypot(x - from[0], y - from[1]);
        if (along > distance / 2 && distance < least) { least = distance; best = i; }
      }
      if (best >= 0) this.choose(best);
    }

    zoom(factor, sx = this.width / 2, sy = this.height / 2) {
      const [x, y] = this.toData(sx, sy);
      this.scale = Math.min(200, Math.max(0.8, this.scale * factor));
      const [nx, ny] = this.toData(sx, sy);
      this.x += x - nx;
      this.y += y - ny;
      this.later();
    }

    button(what) { // around the chosen image, where one is in view
      if (what === "all") { this.showAll(); this.later(); return; }
      const [x, y] = this.chosen >= 0 ? this.toScreen(this.chosen) : [-1, -1];
      const seen = x > 0 && y > 0 && x < this.width && y < this.height;
      this.zoom(what === "in" ? 1.6 : 1 / 1.6, seen ? x : this.width / 2, seen ? y : this.height / 2);
    }

    legend() {
      const box = this.holder.querySelector(".classes");
      this.data.classes.forEach((name, label) => {
        if (!this.groups.has(label)) return;
        const button = make("button", name, "key");
        button.type = "button";
        button.style.setProperty("--c", `hsl(${HUES[label % HUES.length]} 55% 50%)`);
        button.setAttribute("aria-pressed", "false");
        button.addEventListener("click", () => {
          this.only = this.only === label ? -1 : label;
          for (const other of box.children) other.setAttribute("aria-pressed", String(this.only >= 0 && other === button));
          this.redraw();
        });
        box.append(button);
      });
    }

    // -- listening --
    listen() {
      const canvas = this.canvas;
      canvas.addEventListener("pointerdown", (e) => { canvas.setPointerCapture(e.pointerId); this.pointers.set(e.pointerId, [e.offsetX, e.offsetY]); this.moved = 0; });
      canvas.addEventListener("pointermove", (e) => this.move(e));
      canvas.addEventListener("pointerup", (e) => this.release(e));
      canvas.addEventListener("pointercancel", (e) => this.pointers.delete(e.pointerId));
      canvas.addEventListener("pointerleave", () => { this.hover = -1; hideTip(); this.mark(); });
      canvas.addEventListener("wheel", (e) => { // the page scrolls on unless the map has the focus
        if (document.activeElement !== canvas && !e.ctrlKey) return;
        e.preventDefault();
        this.zoom(Math.exp(-e.deltaY / 300), e.offsetX, e.offsetY);
      }, { passive: false });
      canvas.addEventListener("keydown", (e) => this.press(e));
      for (const button of this.holder.querySelectorAll("[data-zoom]")) button.addEventListener("click", () => this.button(button.dataset.zoom));
    }

    move(e) {
      const before = this.pointers.get(e.pointerId);
      if (!before) { this.point(e); return; }
      const others = [...this.pointers].filter(([id]) => id !== e.pointerId).map(([, p]) => p);
      const dx = e.offsetX - before[0], dy = e.offsetY - before[1];
      if (others.length) {
        const [ox, oy] = others[0];
        const ratio = Math.hypot(e.offsetX - ox, e.offsetY - oy) / Math.max(1, Math.hypot(before[0] - ox, before[1] - oy));
        this.zoom(ratio, (e.offsetX + ox) / 2, (e.offsetY + oy) / 2);
      } else {
        this.x -= dx / this.side / this.scale;
        this.y -= dy / this.side / this.scale;
        this.later();
      }
      this.moved += Math.abs(dx) + Math.abs(dy);
      this.pointers.set(e.pointerId, [e.offsetX, e.offsetY]);
      hideTip();
    }

    release(e) {
      this.pointers.delete(e.pointerId);
      if (this.moved < 5) this.choose(this.nearestTo(e.offsetX, e.offsetY, e.pointerType === "touch" ? 26 : 14));
    }

    point(e) {
      const found = this.nearestTo(e.offsetX, e.offsetY, 14);
      if (found !== this.hover) {
        this.hover = found;
        this.mark();
        if (found >= 0) this.fillTip(found);
      }
      if (found >= 0) place(e.clientX, e.clientY); else hideTip();
    }

    fillTip(i) {
      tip.className = [...this.holder.classList].join(" ");
      tip.replaceChildren();
      if (this.data.thumb) { const small = this.thumb(i); small.tabIndex = -1; tip.append(small); }
      tip.append(make("div", this.name(i)));
    }

    press(e) {
      hideTip();
      const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      if (ways[e.key]) this.walk(...ways[e.key]);
      else if (e.key === "+" || e.key === "=") this.button("in");
      else if (e.key === "-") this.button("out");
      else if (e.key === "0") this.button("all");
      else if (e.key === "Escape") this.choose(-1);
      else return;
      e.preventDefault();
    }
  }

  for (const canvas of document.querySelectorAll("canvas[data-map]")) {
    const map = new FeatureMap(canvas, galleries[+canvas.dataset.map]);
    maps.push(map);
    byCanvas.set(canvas, map);
    redraws.push(() => map.redraw());
    new ResizeObserver(() => { if (canvas.clientWidth !== map.width) { map.width = 0; map.later(); } }).observe(canvas);
    map.redraw();
  }
  for (const small of document.querySelectorAll("button.thumb[data-point]")) {
    const canvas = document.querySelector(`canvas[data-map="${small.dataset.gallery}"]`);
    small.addEventListener("click", () => {
      byCanvas.get(canvas).choose(+small.dataset.point);
      canvas.scrollIntoView({ block: "center" });
    });
  }

  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
    for (const map of maps) { map.printing = true; map.redraw(); }
  });
  addEventListener("afterprint", () => { for (const map of maps) { map.printing = false; map.redraw(); } });
})();

"use strict";
(() => {
  const entries = JSON.parse(document.getElementById("entries").textContent);
  const get = (id) => document.getElementById(id);
  const layers = { score: false, mask: true, boxes: true, truth: true };
  const grid = get("grid"), slider = get("threshold"), useMask = get("use-mask");
  const viewer = get("viewer"), viewerCanvas = get("viewer-canvas");
  const loaded = new Map();
  let shown = [], current = -1;

  const source = (entry, name) => (window.ANOMDINO_DATA[entry.id] || {})[name] || entry.pictures[name];
  const picture = (uri) => new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("a picture of the report cannot be read"));
    image.src = uri;
  });
  const grey = (image) => {
    const canvas = document.createElement("canvas");
    canvas.width = image.width; canvas.height = image.height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const rgba = context.getImageData(0, 0, image.width, image.height).data;
    const values = new Uint8Array(image.width * image.height);
    for (let i = 0; i < values.length; i++) values[i] = rgba[4 * i];
    return values;
  };
  const load = (entry) => {
    if (!loaded.has(entry.id)) {
      loaded.set(entry.id, (async () => {
        const photo = await picture(source(entry, "photo"));
        const score = grey(await picture(source(entry, "score")));
        const marks = grey(await picture(source(entry, "marks")));
        return { photo, score, marks, width: photo.width, height: photo.height };
      })());
      if (loaded.size > 400) loaded.delete(loaded.keys().next().value);
    }
    return loaded.get(entry.id);
  };

  // Marks hold, bit by bit: 1 predicted mask, 2 anomaly, 4 void.
  async function paint(canvas, entry) {
    const data = await load(entry);
    const { width, height, score, marks } = data;
    canvas.width = width; canvas.height = height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(data.photo, 0, 0);
    const frame = context.getImageData(0, 0, width, height), p = frame.data;
    const level = Number(slider.value);
    let painted = 0;
    for (let i = 0; i < score.length; i++) {
      const at = 4 * i, bits = marks[i];
      if (layers.score) {
        const s = score[i] / 255;
        p[at] = p[at] * 0.4 + 153 * Math.min(1, 1.6 * s);
        p[at + 1] = p[at + 1] * 0.4 + 153 * Math.max(0, 1.6 * s - 0.6);
        p[at + 2] = p[at + 2] * 0.4 + 100 * Math.max(0, 0.5 - Math.abs(s - 0.35));
      }
      const inside = (bits & 4) === 0 && (useMask.checked ? (bits & 1) === 1 : score[i] >= level);
      if (inside) painted++;
      if (layers.mask && inside) { p[at] *= 0.45; p[at + 1] = p[at + 1] * 0.45 + 140; p[at + 2] = p[at + 2] * 0.45 + 40; }
      if (layers.truth) {
        if ((bits & 4) && ((i + Math.floor(i / width)) % 6 < 3)) { p[at] *= 0.5; p[at + 1] *= 0.5; p[at + 2] *= 0.5; }
        const x = i % width;
        if (bits & 2) {
          const edge = x === 0 || x === width - 1 || i < width || i >= score.length - width ||
            !(marks[i - 1] & 2) || !(marks[i + 1] & 2) || !(marks[i - width] & 2) || !(marks[i + width] & 2);
          if (edge) { p[at] = p[at + 1] = p[at + 2] = 255; }
        }
      }
    }
    context.putImageData(frame, 0, 0);
    if (layers.boxes) {
      context.lineWidth = Math.max(1, width / 400);
      context.strokeStyle = "#40e0ff";
      context.font = `${Math.max(10, Math.round(width / 48))}px sans-serif`;
      for (const [x0, y0, x1, y1, confidence] of entry.boxes) {
        context.strokeRect(x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height);
        context.fillStyle = "#40e0ff";
        context.fillText(confidence.toFixed(2), x0 * width + 2, Math.max(10, y0 * height - 3));
      }
    }
    canvas.dataset.painted = String(painted);
  }

  const text = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits));
  const facts = (entry) => {
    const f = entry.facts;
    const parts = [f.ap === null ? "no AP: " + (f.ap_reason || "no anomaly") : `AP ${text(100 * f.ap, 1)}`];
    if (f.components !== null) parts.push(`${f.missed} of ${f.components} missed`, `${f.false} false`);
    parts.push(`false area ${text(100 * f.false_area, 2)} %`);
    return parts.join(" · ");
  };
  const observer = new IntersectionObserver((seen) => {
    for (const item of seen) {
      item.target.visible = item.isIntersecting;
      if (item.isIntersecting) paint(item.target.querySelector("canvas"), item.target.entry);
    }
  }, { rootMargin: "400px" });

  const orders = {
    key: (a, b) => a.order - b.order,
    ap: (a, b) => (a.facts.ap ?? 2) - (b.facts.ap ?? 2) || a.order - b.order,
    missed: (a, b) => (b.facts.missed ?? -1) - (a.facts.missed ?? -1) || a.order - b.order,
    false_area: (a, b) => b.facts.false_area - a.facts.false_area || a.order - b.order,
  };
  const filters = {
    "": () => true,
    missed: (e) => e.facts.missed > 0,
    false: (e) => e.facts.false > 0,
    clean: (e) => e.facts.clean,
  };
  function arrange() {
    const set = get("set").value;
    shown = entries.filter((e) => (!set || e.set === set) && filters[get("filter").value](e)).sort(orders[get("sort").value]);
    observer.disconnect();
    grid.replaceChildren(...shown.map((entry, index) => {
      const card = document.createElement("button");
      card.type = "button"; card.className = "card"; card.entry = entry; card.dataset.key = entry.key; card.dataset.set = entry.set;
      const canvas = document.createElement("canvas");
      canvas.style.aspectRatio = entry.aspect;
      const caption = document.createElement("div");
      caption.className = "caption";
      const name = document.createElement("b");
      name.textContent = entry.key;
      const line = document.createElement("span");
      line.textContent = `${entry.set} · ${facts(entry)}`;
      if (entry.facts.missed > 0) line.className = "bad";
      caption.append(name, line);
      card.append(canvas, caption);
      card.onclick = () => open(index);
      observer.observe(card);
      return card;
    }));
    get("shown").textContent = `${shown.length} of ${entries.length}`;
    current = -1;
  }
  function repaint() {
    const entry = entries[0];
    if (entry) get("threshold-value").textContent = useMask.checked ? "" :
      (entry.range[0] + (entry.range[1] - entry.range[0]) * Number(slider.value) / 255).toFixed(3);
    for (const card of grid.children) if (card.visible) paint(card.querySelector("canvas"), card.entry);
    if (viewer.open && shown[current]) paint(viewerCanvas, shown[current]);
  }
  function mark(index) {
    if (!shown.length) return;
    grid.children[current]?.classList.remove("current");
    current = Math.max(0, Math.min(shown.length - 1, index));
    const card = grid.children[current];
    card.classList.add("current");
    card.scrollIntoView({ block: "nearest" });
    if (!viewer.open) card.focus({ preventScroll: true });
  }
  function open(index) {
    mark(index);
    const entry = shown[current];
    get("viewer-title").textContent = entry.key;
    get("viewer-facts").textContent = `${entry.set} · ${facts(entry)}`;
    if (!viewer.open) viewer.showModal();
    paint(viewerCanvas, entry).then(() => {
      const room = Math.min(window.innerWidth / viewerCanvas.width, (window.innerHeight - 48) / viewerCanvas.height);
      viewerCanvas.style.width = `${Math.floor(viewerCanvas.width * room)}px`;
    });
  }
  const step = (amount) => (viewer.open ? open(current + amount) : mark(current + amount));
  const columns = () => Math.max(1, getComputedStyle(grid).gridTemplateColumns.split(" ").length);
  const keys = {
    ArrowRight: () => step(1), ArrowLeft: () => step(-1),
    ArrowDown: () => step(viewer.open ? 1 : columns()), ArrowUp: () => step(viewer.open ? -1 : -columns()),
    s: () => flip("score"), m: () => flip("mask"), b: () => flip("boxes"), t: () => flip("truth"),
  };
  function flip(name) {
    layers[name] = !layers[name];
    document.querySelector(`[data-layer="${name}"]`).checked = layers[name];
    repaint();
  }
  document.addEventListener("keydown", (event) => {
    if (["INPUT", "SELECT"].includes(event.target.tagName) && event.target.type !== "checkbox") return;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const action = keys[event.key] || keys[event.key.toLowerCase()];
    if (action) { event.preventDefault(); action(); }
  });
  for (const id of ["set", "sort", "filter"]) get(id).onchange = arrange;
  slider.oninput = () => { useMask.checked = false; repaint(); };
  useMask.onchange = repaint;
  for (const box of document.querySelectorAll("[data-layer]")) box.onchange = () => { layers[box.dataset.layer] = box.checked; repaint(); };
  get("viewer-close").onclick = () => viewer.close();
  get("theme").onclick = () => {
    const root = document.documentElement;
    const dark = root.dataset.theme === "dark" || (root.dataset.theme === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
    root.dataset.theme = dark ? "light" : "dark";
  };
  arrange();
  repaint();
})();

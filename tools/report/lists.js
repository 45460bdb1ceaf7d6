// The queries: filtered and sorted; only those on the screen are drawn.

const SPARE = 3; // rows drawn above and below the screen
const images = data.images;
const rowsPlace = byId("rows");
const drawnRows = new Map(); // place in `shown` to its element
let shown = []; // numbers of the queries that the filters leave, sorted
let current = 0; // place of the row that has, or last had, the focus
let rowHeight = 0;

function identity(picture) {
  const pid = images.pid[picture];
  return pid === 0 ? "distractor" : images.names[pid] ?? `pid ${pid}`;
}

function cameraOf(picture) {
  return images.camera ? images.cameraNames[images.camera[picture]] ?? `cam ${images.camera[picture]}` : "";
}

const searched = data.queries.map(({ image }) => `${identity(image)}\n${images.file[image]}`.toLowerCase());
const identities = new Set(data.queries.map(({ image }) => exactName(image)));

function exactName(picture) {
  return String(images.names[images.pid[picture]] ?? images.pid[picture]).toLowerCase();
}

// ---- filters

function fits(number, wanted) {
  const query = data.queries[number];
  if (wanted.words) {
    // A whole name matches only this identity: "1" does not match every name that contains a 1.
    const exact = identities.has(wanted.words);
    if (exact ? exactName(query.image) !== wanted.words : !searched[number].includes(wanted.words)) return false;
  }
  if (wanted.camera !== "" && images.camera[query.image] !== Number(wanted.camera)) return false;
  if (query.ap === null ? wanted.low > 0 || wanted.high < 100 : query.ap < wanted.low || query.ap > wanted.high) return false;
  if (wanted.result === "right") return query.hits[0] === 1;
  if (wanted.result === "wrong") return query.hits.length > 0 && query.hits[0] > 1;
  if (wanted.result === "none") return query.hits.length === 0;
  return wanted.result !== "maps" || String(number) in data.heatmaps;
}

// Numbers by which queries are sorted; those without one come last.
const SORTS = {
  worst: (q) => q.ap,
  best: (q) => (q.ap === null ? null : -q.ap),
  identity: (q) => images.pid[q.image],
  camera: (q) => images.camera?.[q.image] ?? null,
  wrong: (q) => q.wrong[0]?.[2] ?? null,
  order: (q, number) => number,
};

function applyFilters() {
  const number = (id, without) => (byId(id).value === "" ? without : Number(byId(id).value));
  const wanted = {
    words: byId("words").value.trim().toLowerCase(), camera: byId("camera").value, result: byId("result").value,
    low: number("ap-low", 0), high: number("ap-high", 100),
  };
  const key = SORTS[byId("sort").value];
  const keys = data.queries.map((q, i) => key(q, i) ?? Infinity);
  shown = data.queries.map((_, i) => i).filter((i) => fits(i, wanted));
  shown.sort((a, b) => (keys[a] === keys[b] ? a - b : keys[a] - keys[b]));
  current = 0;
  byId("count").textContent = `${many(shown.length)} of ${plural(data.queries.length, "query", "queries")}`;
  byId("nothing").hidden = shown.length > 0;
  for (const row of drawnRows.values()) row.remove();
  drawnRows.clear();
  drawRows();
}

// ---- rows

function drawRows() {
  rowHeight = parseFloat(getComputedStyle(rowsPlace).getPropertyValue("--row"));
  rowsPlace.style.height = `${rowHeight * shown.length}px`;
  const top = rowsPlace.getBoundingClientRect().top;
  const first = Math.max(0, Math.floor(-top / rowHeight) - SPARE);
  const last = Math.min(shown.length, Math.ceil((innerHeight - top) / rowHeight) + SPARE);
  for (const [place, row] of drawnRows)
    if ((place < first || place >= last) && place !== current) { // the current one may have the focus
      row.remove();
      drawnRows.delete(place);
    }
  for (let place = first; place < last; place++) row(place);
  if (shown.length) row(current);
  for (const [place, node] of drawnRows) node.style.top = `${place * rowHeight}px`;
}

function row(place) {
  if (drawnRows.has(place)) return drawnRows.get(place);
  const query = data.queries[shown[place]];
  const node = element("div", { className: "row", role: "option", tabIndex: place === current ? 0 : -1,
    "aria-selected": String(place === current), "aria-posinset": place + 1, "aria-setsize": shown.length });
  node.dataset.place = place;
  const strip = element("div", { className: "strip" }, framed(query.image, "asked", describe(query.image)));
  query.list.forEach((picture, i) => strip.append(ranked(query, picture, i + 1, query.distance[i])));
  node.append(element("p", {}, element("b", {}, identity(query.image)), ...details(query).map((text) => element("span", {}, text))), strip);
  drawnRows.set(place, node);
  rowsPlace.append(node);
  return node;
}

function details(query) {
  const first = query.hits[0];
  const found = first === undefined ? "no match in the gallery" : `match at rank ${many(first)}`;
  return [cameraOf(query.image), query.ap === null ? "" : `AP ${query.ap.toFixed(1)} %`, found].filter(Boolean);
}

function describe(picture) {
  return [identity(picture), cameraOf(picture), images.file[picture]].filter(Boolean).join(", ");
}

// A picture in a frame: asked, right, wrong, or distractor.
function framed(picture, kind, words) {
  return element("span", { className: `framed ${kind}`, title: words },
    element("img", { src: pictureOf(picture), alt: words, width: data.size[0], height: data.size[1], decoding: "async", draggable: false }));
}

function kindOf(query, picture) {
  if (images.pid[picture] === images.pid[query.image]) return "right";
  return images.pid[picture] === 0 ? "wrong distractor" : "wrong";
}

function ranked(query, picture, rank, distance) {
  const kind = kindOf(query, picture);
  return framed(picture, kind, `rank ${rank}, ${kind.split(" ")[0]}: ${describe(picture)}, distance ${distance.toFixed(4)}`);
}

// ---- the focus: one row has it

function goTo(place) {
  if (!shown.length) return;
  const before = drawnRows.get(current);
  if (before) {
    before.tabIndex = -1;
    before.setAttribute("aria-selected", "false");
  }
  current = Math.max(0, Math.min(shown.length - 1, place));
  const node = row(current);
  node.tabIndex = 0;
  node.setAttribute("aria-selected", "true");
  node.focus({ preventScroll: true });
  node.scrollIntoView({ block: "nearest" });
  drawRows();
}

function moveByKey(event) {
  const page = Math.max(1, Math.floor(innerHeight / rowHeight) - 1);
  const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
  if (event.key in steps) goTo(current + steps[event.key]);
  else if (event.key === "Enter" || event.key === " ") openQuery(current);
  else return;
  event.preventDefault();
}

function startLists() {
  byId("lists-words").textContent =
    `Each row shows a query (left) and its ${plural(data.top, "nearest image")}, as many as fit. The frame is green for the same identity, red for others` +
    (data.counts.distractors ? " (dashed for distractors)" : "") + ". Click a row for the whole list." + mapsWords();
  if (images.camera) {
    const cameras = [...new Set(data.queries.map((q) => images.camera[q.image]))].sort((a, b) => a - b);
    byId("camera").append(element("option", { value: "" }, "all"), ...cameras.map((c) => element("option", { value: c }, images.cameraNames[c] ?? c)));
  } else {
    byId("camera").append(element("option", { value: "" }, "unknown"));
    byId("camera-label").hidden = true;
    byId("sort").querySelector("[value=camera]").remove();
  }
  document.documentElement.style.setProperty("--ratio", data.size[0] / data.size[1]);
  byId("filters").addEventListener("input", applyFilters);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["clear", "nothing-clear"])
    byId(id).addEventListener("click", () => { byId("filters").reset(); applyFilters(); });
  byId("words").addEventListener("keydown", (event) => {
    if (!["Escape", "ArrowDown", "Enter"].includes(event.key)) return;
    event.preventDefault();
    goTo(current);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.matches("input, select, textarea") || byId("query").open) return;
    event.preventDefault();
    byId("words").focus();
    byId("words").select();
  });
  rowsPlace.addEventListener("keydown", moveByKey);
  rowsPlace.addEventListener("click", (event) => {
    const clicked = event.target.closest(".row");
    if (clicked) openQuery(Number(clicked.dataset.place));
  });
  addEventListener("scroll", drawRows, { passive: true });
  addEventListener("resize", drawRows);
  applyFilters();
}

function mapsWords() {
  const number = Object.keys(data.heatmaps).length;
  return number ? ` ${plural(number, "query has", "queries have")} heat maps: those with the lowest and the highest AP.` : "";
}

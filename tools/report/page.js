// The part above the lists: scores, plots, training, cameras; and the theme.

const data = JSON.parse(document.getElementById("data").textContent);
const [thumbStart, ...thumbRest] = document.getElementById("thumbs").textContent.split("\n");
const byId = (id) => document.getElementById(id);
const many = (number) => number.toLocaleString("en");
const plural = (number, one, several = `${one}s`) => `${many(number)} ${number === 1 ? one : several}`;
const percent = (value) => (value === null || value === undefined ? "–" : value.toFixed(2));

function pictureOf(number) {
  return `data:image/jpeg;base64,${thumbStart}${thumbRest[number]}`;
}

function table(head, rows, caption) {
  const cells = (row, kind) => row.map((cell, i) => {
    const text = cell instanceof Node ? cell : String(cell);
    return cell instanceof HTMLTableCellElement ? cell : element(i ? kind : "th", { scope: i ? "" : "row" }, text);
  });
  return element("table", {},
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...cells(row, "td")))));
}

// ---- theme: the one of the system until the user chooses another

function startTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const choices = ["auto", "light", "dark"];
  let chosen = "auto";
  try { chosen = localStorage.getItem("theme") ?? "auto"; } catch { /* some browsers store nothing for a file */ }
  const show = () => {
    document.documentElement.dataset.theme = chosen === "auto" ? (dark.matches ? "dark" : "light") : chosen;
    byId("theme").textContent = `Theme: ${chosen}`;
  };
  byId("theme").addEventListener("click", () => {
    chosen = choices[(choices.indexOf(chosen) + 1) % choices.length];
    try { localStorage.setItem("theme", chosen); } catch { /* then the choice lasts until the page is closed */ }
    show();
  });
  dark.addEventListener("change", show);
  show();
}

// ---- scores

const COLUMNS = [["mAP", "mAP"], ["mINP", "mINP"], ["rank1", "Rank-1"], ["rank5", "Rank-5"], ["rank10", "Rank-10"],
  ["tpr@1e-04", "TPR at FPR 1e-4"], ["tpr@1e-03", "at 1e-3"], ["tpr@1e-02", "at 1e-2"]];

function showScores() {
  const { scores } = data;
  if (data.notes.length)
    byId("notes").append(element("p", { className: "note" }, element("strong", {}, "Note: "), `${data.notes.join("; ")}.`));
  for (const [key, name] of [["mAP", "mAP"], ["rank1", "Rank-1"], ["mINP", "mINP"]])
    byId("headline").append(element("p", {}, element("b", {}, percent(scores.plain[key])), name));
  const others = Object.entries(scores).filter(([name]) => name !== "plain")
    .map(([name, row]) => `; “${name}”: mAP ${percent(row.mAP)}, Rank-1 ${percent(row.rank1)}`);
  byId("headline").append(element("p", { className: "hint" }, `in percent, for “plain”${others.join("")}`));
  const columns = COLUMNS.filter(([key]) => Object.values(scores).some((row) => key in row));
  const rows = Object.entries(scores).map(([name, row]) => [name, ...columns.map(([key]) => percent(row[key])), many(row.valid_queries)]);
  byId("score-table").append(table(["features", ...columns.map((c) => c[1]), "queries"], rows, "Scores in percent"));
  byId("protocol").textContent = protocolWords();
  for (const [name, value] of data.facts) if (value) byId("facts").append(element("dt", {}, name), element("dd", {}, value));
}

function protocolWords() {
  const { counts, shown } = data;
  const without = counts.queries - counts.valid;
  const cameras = typeof data.cameras !== "string";
  return `${plural(counts.queries, "query", "queries")} of ${plural(counts.identities, "identity", "identities")} in a gallery of ` +
    `${plural(counts.images, "image")}. ` +
    (data.images.camera ? "Gallery images of a query's identity under its own camera are ignored. " : "") +
    (counts.distractors ? `The ${plural(counts.distractors, "distractor")} (pid 0) can never be a match. ` : "") +
    (without ? `${plural(without, "query has", "queries have")} no match and ${without === 1 ? "is" : "are"} left out of all scores. ` : "") +
    (data.interval ? `${data.interval}. ` : "") +
    `The plots of pairs show the cosines of “${data.pairs.features}”; the plot of AP, ${cameras ? "the table of cameras " : ""}and the ranked lists show “${shown}”.`;
}

// ---- plots

function showPlots() {
  const place = byId("score-plots");
  const curves = Object.entries(data.cmc).map(([name, cmc]) => ({ name, points: cmc.map((v, i) => [i + 1, v]) }));
  addPlot(place, { title: "CMC", series: curves, x: { label: "rank", log: true, ticks: [1, 2, 5, 10, 20, 50, 100, 200, 500] }, y: { label: "queries with a match, %", high: 100 },
    about: "Share of the queries whose first match is at this rank or before it." });
  showRoc(place);
  showCosines(place);
  showAp(place);
}

function showRoc(place) {
  const { roc, equal_error: equal, negatives } = data.pairs;
  if (!roc) {
    place.append(element("figure", {}, element("figcaption", {}, "ROC"),
      element("p", { className: "empty" }, "All pairs show the same identity, so no pair can be accepted wrongly.")));
    return;
  }
  const points = roc.threshold.map((t, i) => [roc.fpr[i], 100 * roc.tpr[i], t]).filter((p) => p[0] > 0);
  const low = Math.max(1e-6, 10 ** Math.floor(Math.log10(1 / negatives)));
  const say = ([fpr, tpr, t]) =>
    `Same identity if the cosine is at least ${short(t)}: ${tpr.toFixed(2)} % of the matching pairs are accepted, ` +
    `and ${short(100 * fpr)} % of the others.`;
  addPlot(place, { title: "ROC of pairs", words: say, series: [{ name: "pairs", points }],
    x: { label: "other pairs accepted (FPR)", low, high: 1, log: true }, y: { label: "matches accepted (TPR), %", low: 0, high: 100 },
    about: `Equal error rate ${(100 * equal.rate).toFixed(2)} % at cosine ${short(equal.threshold)}.` });
}

function showCosines(place) {
  const { edges, bars, positives, negatives } = data.pairs;
  const series = ["matching pairs", "other pairs"].map((name, kind) => ({
    name, bars: true, end: edges[edges.length - 1], points: bars[kind].map((share, i) => [edges[i], 100 * share]),
  }));
  addPlot(place, { title: "Cosines of pairs", series, x: { label: `cosine of two “${data.pairs.features}” features`, low: edges[0], high: edges[edges.length - 1] },
    y: { label: "share of each kind, %", low: 0 },
    about: `${plural(positives, "matching pair")}, ${plural(negatives, "other")}; each kind adds up to 100 %.` });
}

function showAp(place) {
  const bars = Array.from({ length: 20 }, (_, i) => [5 * i, 0]);
  for (const query of data.queries) if (query.ap !== null) bars[Math.min(19, Math.floor(query.ap / 5))][1] += 1;
  addPlot(place, { title: "AP of the queries", series: [{ name: "queries", bars: true, end: 100, points: bars }],
    x: { label: "AP, %", low: 0, high: 100 }, y: { label: "queries", low: 0 },
    words: ([low, number]) => `AP from ${low} to ${low + 5} %: ${plural(number, "query", "queries")}.`,
    about: `Their mean is the mAP, ${percent(data.scores[data.shown].mAP)} %.` });
}

// ---- training

function showTraining() {
  const place = byId("training-plots");
  const of = (key) => data.history.filter((h) => typeof h[key] === "number").map((h) => [h.epoch, h[key]]);
  const add = (title, label, series, y = {}) => {
    const filled = series.filter((s) => s.points.length);
    const last = filled.map((s) => `${s.name} ${short(s.points[s.points.length - 1][1])}${label.endsWith("%") ? " %" : ""}`).join(", ");
    if (filled.length) addPlot(place, { title, series: filled, x: { label: "epoch" }, y: { label, ...y }, about: `At the end: ${last}.` });
  };
  add("Losses", "mean of the epoch", data.losses.map((name) => ({ name, points: of(name) })), { low: 0 });
  add("Accuracy on training batches", "correct, %", [{ name: "accuracy", points: of("accuracy").map(([e, v]) => [e, 100 * v]) }], { low: 0, high: 100 });
  add("Learning rate", "rate at the epoch's end", [{ name: "lr", points: of("lr") }], { low: 0 });
  const tests = data.history.filter((h) => h.scores);
  const names = [...new Set(tests.flatMap((h) => Object.keys(h.scores)))] // one test alone is no curve
    .filter((name) => tests.length === 1 || tests.filter((h) => name in h.scores).length > 1);
  const scores = names.flatMap((name) => [["mAP", "mAP"], ["rank1", "Rank-1"]].map(([key, word]) => ({
    name: `${word}, ${name}`, dots: true,
    points: tests.filter((h) => typeof h.scores[name]?.[key] === "number").map((h) => [h.epoch, h.scores[name][key]]),
  })));
  add("Tests during training", "%", scores, { low: 0, high: 100 });
  if (!place.children.length)
    place.replaceWith(element("p", { className: "empty" }, "There is no training history: the weights come from elsewhere, or no epoch has finished."));
}

// ---- cameras

function showCameras() {
  const cameras = data.cameras;
  if (typeof cameras === "string") {
    byId("cameras-words").textContent = cameras;
    byId("camera-table").remove();
    return;
  }
  byId("cameras-words").textContent =
    "Each cell shows mAP and, below it, Rank-1 in percent, for queries of one camera (row) in the gallery images of another (column). A greener cell has a higher mAP.";
  const found = cameras.cells.flat().filter(Boolean).map((values) => values.mAP);
  const [least, most] = [Math.min(...found), Math.max(...found)];
  const cell = (values, from, to) => {
    if (!values) return element("td", { className: "empty" }, "–");
    const words = `camera ${from} to ${to}: ${plural(values.queries, "query", "queries")} with a match`;
    const node = element("td", { className: "shade", title: words }, element("b", {}, values.mAP.toFixed(1)), element("span", {}, values.rank1.toFixed(1)));
    node.style.setProperty("--share", `${(60 * (values.mAP - least) / (most - least || 1)).toFixed(0)}%`);
    return node;
  };
  const rows = cameras.rows.map((from, i) => [`from ${from}`, ...cameras.columns.map((to, j) => cell(cameras.cells[i][j], from, to))]);
  byId("camera-table").append(table(["", ...cameras.columns.map((c) => `to ${c}`)], rows, "mAP and Rank-1 by camera"));
}

startTheme();
showScores();
showPlots();
showTraining();
showCameras();

// One query in full: its list, heat maps, and the nearest right and wrong images.

const MOST_RANKS = 40; // ranks of matches that are written out

function openQuery(place) {
  goTo(place);
  const number = shown[current];
  const query = data.queries[number];
  byId("query-title").textContent = [identity(query.image), ...details(query)].join(" · ");
  byId("previous").disabled = current === 0;
  byId("next").disabled = current === shown.length - 1;
  byId("query-body").replaceChildren(about(query, number), ...lists(query));
  if (!byId("query").open) byId("query").showModal();
  byId("query-body").focus();
  byId("query-body").scrollTop = 0;
}

function about(query, number) {
  const facts = element("div", { className: "facts" },
    element("p", {}, `Query ${many(current + 1)} of ${many(shown.length)}: `, element("span", { className: "file" }, images.file[query.image])),
    element("p", {}, matchWords(query)));
  const maps = data.heatmaps[number];
  if (!maps) {
    const some = Object.keys(data.heatmaps).length > 0;
    facts.append(element("p", { className: "hint" },
      some ? "This query has no heat maps; filter by the result “with heat maps” to see those that do." : "This page was made without heat maps (--heatmaps 0)."));
  }
  const top = element("div", { className: "asking" }, framed(query.image, "asked big", describe(query.image)), facts);
  return element("div", { className: "upper" }, top, maps ? heatMaps(maps) : "");
}

function matchWords(query) {
  const { hits } = query;
  if (!hits.length) return "The gallery holds no image of this identity under another camera, so this query is not scored.";
  const ranks = hits.slice(0, MOST_RANKS).map(many).join(", ");
  const rest = hits.length > MOST_RANKS ? `, …, the last at ${many(hits[hits.length - 1])}` : "";
  return `${plural(hits.length, "match", "matches")} in the gallery, at rank${hits.length === 1 ? "" : "s"} ${ranks}${rest}.`;
}

function heatMaps(maps) {
  const show = ({ words, images: pictures }, i) => element("figure", { className: "heat" },
    element("div", {}, ...pictures.map((picture, j) => element("img", { src: `data:image/jpeg;base64,${picture}`,
      alt: `heat map of the ${j ? "gallery image" : "query"}: ${words}`, decoding: "async" }))),
    element("figcaption", {}, i ? `Query and ${words}` : `Query: ${words}`));
  return element("section", {}, element("h3", {}, "Heat maps"),
    element("p", { className: "hint" }, "Alone: where the features are strong. In pairs: what makes the two images similar for the model. Red is the most; each map has its own scale."),
    element("div", { className: "heats" }, ...maps.map(show)));
}

function lists(query) {
  const found = query.list.map((picture, i) => [i + 1, picture, query.distance[i]]);
  const sections = [[`The ${plural(found.length, "nearest image")}`, found], ["Nearest wrong images", query.wrong], ["Nearest right images", query.right]];
  if (!found.length) return [element("p", { className: "empty" }, "No gallery image counts for this query: all have its identity and camera.")];
  return sections.map(([title, tiles], i) => element("section", { className: i ? "half" : "" }, element("h3", {}, title),
    tiles.length ? element("ol", { className: "tiles" }, ...tiles.map((t) => tile(query, ...t))) : element("p", { className: "empty" }, "There are none.")));
}

function tile(query, rank, picture, distance) {
  const right = kindOf(query, picture) === "right";
  return element("li", {}, ranked(query, picture, rank, distance),
    element("b", { className: right ? "right" : "wrong" }, `${right ? "✓" : "✗"} ${many(rank)}`),
    element("span", { className: "who" }, identity(picture)),
    element("span", {}, cameraOf(picture)), element("span", {}, distance.toFixed(3)));
}

function startQuery() {
  const dialog = byId("query");
  byId("previous").addEventListener("click", () => openQuery(current - 1));
  byId("next").addEventListener("click", () => openQuery(current + 1));
  byId("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); }); // outside it
  dialog.addEventListener("close", () => goTo(current));
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft" && current > 0) openQuery(current - 1);
    if (event.key === "ArrowRight" && current < shown.length - 1) openQuery(current + 1);
  });
}

startLists();
startQuery();

// Line plots, steps and bars as SVG, redrawn when their width changes.

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { top: 10, right: 14, bottom: 42, left: 58 };

function element(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in node) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

function svg(name, attributes = {}, text = "") {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text) node.textContent = text;
  return node;
}

// The axis' own ticks, or round numbers from low to high, about `count` of them; powers of ten on a logarithmic axis.
function ticks(axis, low, high, count) {
  if (axis.ticks) return axis.ticks.filter((tick) => tick >= low && tick <= high);
  if (axis.log) {
    const powers = [];
    for (let p = Math.ceil(Math.log10(low) - 1e-9); p <= Math.log10(high) + 1e-9; p++) powers.push(10 ** p);
    return powers;
  }
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 0.001 || size >= 1e5) return value.toExponential(size < 1e5 ? 1 : 2).replace(/\.?0+e\+?/, "e");
  return String(Number(value.toPrecision(4)));
}

// Low and high end of an axis: as given, or those of the values; never equal.
function range(axis, values) {
  let low = axis.low ?? Math.min(...values);
  let high = axis.high ?? Math.max(...values);
  if (!(high > low)) [low, high] = [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  return [low, high];
}

function scale(axis, values, from, to) {
  const [low, high] = range(axis, values);
  const place = axis.log ? Math.log10 : (v) => v;
  const [a, b] = [place(low), place(high)];
  const at = (value) => from + ((place(value) - a) / (b - a)) * (to - from);
  return Object.assign(at, { low, high });
}

// plot: title, about (words below it), x and y ({label, low, high, log, ticks}), words (of a point, for the pointer), and
// series ({name, points: [[x, y], ...], bars, dots}); of bars, a point is the left edge and the height.
function addPlot(parent, plot) {
  const drawing = element("div", { className: "drawing" });
  const legend = element("ul", { className: "legend" });
  plot.series.forEach((s, i) => {
    if (plot.series.length > 1) legend.append(element("li", { className: `s${i % 6}` }, s.name));
  });
  const readout = element("p", { className: "readout" }, plot.about ?? "");
  parent.append(element("figure", {}, element("figcaption", {}, plot.title), legend, drawing, readout));
  let drawn = 0;
  new ResizeObserver(() => {
    if (drawing.clientWidth && drawing.clientWidth !== drawn) draw(drawing, readout, plot, (drawn = drawing.clientWidth));
  }).observe(drawing);
}

function draw(drawing, readout, plot, width) {
  const height = Math.round(Math.min(280, Math.max(190, width * 0.6)));
  const all = plot.series.flatMap((s) => s.points);
  const x = scale(plot.x, all.map((p) => p[0]), MARGIN.left, width - MARGIN.right);
  const y = scale(plot.y, all.map((p) => p[1]), height - MARGIN.bottom, MARGIN.top);
  const picture = svg("svg", { width, height, role: "img", "aria-label": `${plot.title}: ${plot.y.label} over ${plot.x.label}` });
  drawAxes(picture, plot, x, y, width, height);
  plot.series.forEach((s, i) => picture.append(...(s.bars ? [bars(s, i, x, y)] : line(s, i, x, y))));
  const guide = svg("line", { class: "guide", y1: MARGIN.top, y2: height - MARGIN.bottom, visibility: "hidden" });
  picture.append(guide);
  picture.addEventListener("pointermove", (event) => {
    const at = event.clientX - picture.getBoundingClientRect().left;
    readout.textContent = readValues(plot, x, at, guide) || (plot.about ?? "");
  });
  picture.addEventListener("pointerleave", () => {
    guide.setAttribute("visibility", "hidden");
    readout.textContent = plot.about ?? "";
  });
  drawing.replaceChildren(picture);
}

function drawAxes(picture, plot, x, y, width, height) {
  const bottom = height - MARGIN.bottom;
  for (const tick of ticks(plot.y, y.low, y.high, 5)) {
    picture.append(svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick) }));
    picture.append(svg("text", { class: "tick", x: MARGIN.left - 6, y: y(tick) + 4, "text-anchor": "end" }, short(tick)));
  }
  for (const tick of ticks(plot.x, x.low, x.high, Math.max(3, Math.round(width / 80)))) {
    picture.append(svg("line", { class: "axis", x1: x(tick), x2: x(tick), y1: bottom, y2: bottom + 4 }));
    picture.append(svg("text", { class: "tick", x: x(tick), y: bottom + 17, "text-anchor": "middle" }, short(tick)));
  }
  picture.append(svg("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: bottom, y2: bottom }));
  const middle = (MARGIN.left + width - MARGIN.right) / 2;
  picture.append(svg("text", { class: "label", x: middle, y: height - 6, "text-anchor": "middle" }, plot.x.label));
  const up = (MARGIN.top + bottom) / 2;
  const turn = { class: "label", x: 12, y: up, "text-anchor": "middle", transform: `rotate(-90 12 ${up})` };
  picture.append(svg("text", turn, plot.y.label));
}

function line(series, number, x, y) {
  const inside = series.points.filter(([a, b]) => a >= x.low && a <= x.high && b !== null);
  const path = inside.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
  const parts = [svg("path", { class: `line s${number % 6}`, d: path })];
  if (series.dots || inside.length === 1)
    for (const [a, b] of inside) parts.push(svg("circle", { class: `dot s${number % 6}`, cx: x(a), cy: y(b), r: 3 }));
  return parts;
}

function bars(series, number, x, y) {
  let path = `M${x(series.points[0][0])} ${y(0)}`;
  series.points.forEach(([left, height], i) => {
    const right = i + 1 < series.points.length ? series.points[i + 1][0] : series.end;
    path += `L${x(left).toFixed(1)} ${y(height).toFixed(1)}L${x(right).toFixed(1)} ${y(height).toFixed(1)}`;
  });
  return svg("path", { class: `bars s${number % 6}`, d: `${path}L${x(series.end)} ${y(0)}Z` });
}

// The values at the pointer as words, and the guide line put there; empty where there are none.
function readValues(plot, x, at, guide) {
  const near = (points) => points.reduce((a, b) => (Math.abs(x(b[0]) - at) < Math.abs(x(a[0]) - at) ? b : a));
  const left = (points) => points.findLast((p) => x(p[0]) <= at) ?? points[0];
  const found = plot.series.map((s) => {
    const points = s.points.filter(([a, b]) => a >= x.low && a <= x.high && b !== null);
    return points.length ? { name: s.name, point: s.bars ? left(points) : near(points) } : null;
  }).filter(Boolean);
  if (!found.length) return "";
  const place = found[0].point[0];
  guide.setAttribute("x1", x(place));
  guide.setAttribute("x2", x(place));
  guide.setAttribute("visibility", "visible");
  if (plot.words) return plot.words(found[0].point);
  const unit = plot.y.label.endsWith("%") ? " %" : "";
  const values = found.map((f) => `${f.name} ${short(f.point[1])}${unit}`).join(", ");
  return `${plot.x.label} ${short(place)}: ${values}`;
}

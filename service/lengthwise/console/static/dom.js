// Makes elements. Texts are always set as text, never as HTML: names of models and labels come from elsewhere.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An HTML element; `properties` are attributes, but for `text` and for `on...` listeners. */
export function make(name, properties = {}, ...children) {
  return filled(document.createElement(name), properties, children);
}

/** An SVG element. */
export function draw(name, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, name), properties, children);
}

function filled(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** Fills a select with [value, text] pairs and keeps the chosen value if it is still there. */
export function offer(select, pairs) {
  const before = select.value;
  select.replaceChildren(...pairs.map(([value, text]) => make("option", { value, text })));
  if (pairs.some(([value]) => value === before)) select.value = before;
}

/** The first row of a table; an empty text is no heading. */
export const headOf = (texts) => make("thead", {}, make("tr", {}, ...texts.map((text) => (text ? make("th", { text, scope: "col" }) : make("td")))));

/** `1 step`, `2 steps`. */
export const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

/** The start of a long text. */
export const cut = (text, most = 80) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

/** A number for people: three digits that matter. */
export function short(value, unit = "") {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  let text;
  if (size >= 1e6) text = `${(value / 1e6).toPrecision(3)} M`;
  else if (size >= 1000) text = Math.round(value).toLocaleString("en");
  else if (size === 0 || size >= 100) text = String(Math.round(value));
  else text = String(Number(value.toPrecision(3)));
  return unit ? `${text} ${unit}` : text;
}

/** Seconds for people. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds === 0) return "0 s";
  if (seconds < 1e-3) return short(seconds * 1e6, "µs");
  return seconds < 1 ? short(seconds * 1e3, "ms") : short(seconds, "s");
}

/** The colour of a label, one of `count`: a ramp that no feature has, from dark to light. */
export const labelColour = (index, count) => `hsl(${Math.round(285 - (235 * index) / Math.max(count - 1, 1))} 58% ${Math.round(34 + (34 * index) / Math.max(count - 1, 1))}%)`;

/** The lowest and the highest of some numbers. */
export const extent = (values) => values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);

/** Round numbers from `low` to `high`, about `count` of them; 0 is among them if it lies between. */
export function ticks(low, high, count = 5) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((each) => each * power >= rough) ?? 10);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** A coloured mark with its name. */
export const swatch = (colour, text) => {
  const mark = draw("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" }, draw("rect", { width: 10, height: 10, rx: 2, fill: colour }));
  return make("span", { class: "swatch" }, mark, text);
};

/** The colour of a feature, one of `count`. */
export const colourOf = (index, count) => `hsl(${Math.round((210 + (360 * index) / Math.max(count, 1)) % 360)} 62% 52%)`;

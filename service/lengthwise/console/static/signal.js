// The picture of a sequence: a line for each feature, or a heat map of many; masked steps hatched, missing values
// marked; below it the attention, or the label of each step.

import { byId, colourOf, draw, extent, labelColour, short, swatch, ticks } from "./dom.js";
import { heatMap } from "./heatmap.js";

const MOST_LINES = 12;
const STRONG = 4; // times an equal share of the attention: from here on, the colour is full

const LEFT = 62;
const RIGHT = 8;
const TOP = 10;
const STRIP = 16;
const BOTTOM = 32; // without strips

export class Signal {
  /** `changed(what)` is called after each change of the sequence: "mask" or "values". */
  constructor(changed) {
    this.element = byId("signal");
    this.changed = changed;
    this.cursor = 0;
    this.drawn = 0;
    this.dragging = false;
    this.attention = null;
    this.element.addEventListener("pointerdown", (event) => this.pressed(event));
    this.element.addEventListener("pointermove", (event) => (this.dragging ? this.dragged(event) : this.hover(event)));
    this.element.addEventListener("pointerleave", () => this.near(null));
    for (const end of ["pointerup", "pointercancel"]) this.element.addEventListener(end, () => this.released());
    this.element.addEventListener("keydown", (event) => this.key(event));
    this.width = 1000;
    this.height = 260;
    new ResizeObserver(() => this.sequence && this.fit()).observe(this.element);
  }

  /** Paints again where the place has another size: a unit of the picture is a pixel. */
  fit() {
    const narrow = window.matchMedia("(max-width: 30rem)").matches;
    const [width, height] = [this.element.clientWidth || 1000, narrow ? 200 : 260];
    if (width === this.width && height === this.height) return;
    [this.width, this.height] = [width, height];
    this.paint();
  }

  get plot() {
    return this.height - TOP - BOTTOM - this.strips.length * (STRIP + 2);
  }

  /** What stands below the curves, of this model and sequence: the true labels, and what is answered for each step. */
  get strips() {
    const { task, attention } = this.model ?? {};
    if (task === "per-step") return this.sequence.stepLabels ? ["true", "answered"] : ["label"];
    return attention ? ["attention"] : [];
  }

  get inner() {
    return this.width - LEFT - RIGHT;
  }

  /** Whether the features are rows of colours: so many lines nobody can tell apart. */
  get isMap() {
    return this.sequence.features > MOST_LINES;
  }

  /** An equal share of the attention. */
  get share() {
    return 1 / Math.max(this.sequence.length - this.sequence.leftOut, 1);
  }

  get tool() {
    return document.querySelector("input[name=tool]:checked").value;
  }

  show(sequence, model) {
    this.sequence = sequence;
    this.model = model;
    this.forget();
    this.element.classList.remove("stale");
    this.cursor = Math.min(this.cursor, sequence.length - 1);
    this.range = this.rangeOf();
    this.paint();
  }

  /** The lowest and the highest value of the picture. */
  rangeOf() {
    const { sequence, model } = this;
    if (sequence.isTokens) return [0, Math.max(model.vocabulary - 1, 1)];
    const values = sequence.steps.flat().filter((value) => value !== null);
    model.mean?.forEach((mean, i) => values.push(mean - 1.5 * model.std[i], mean + 1.5 * model.std[i]));
    const [low, high] = extent(values);
    if (!Number.isFinite(low)) return [-1, 1];
    const margin = 0.06 * (high - low) || 1;
    return [low - margin, high + margin];
  }

  x(step) {
    return LEFT + ((step + 0.5) / this.sequence.length) * this.inner;
  }

  y(value) {
    const [low, high] = this.range;
    return TOP + (1 - (value - low) / (high - low)) * this.plot;
  }

  paint() {
    const { sequence } = this;
    const slot = this.inner / sequence.length;
    const parts = [hatch()];
    for (const value of this.isMap ? [] : ticks(...this.range)) {
      parts.push(draw("line", { class: "grid", x1: LEFT, x2: this.width - RIGHT, y1: this.y(value), y2: this.y(value) }));
      parts.push(draw("text", { x: LEFT - 6, y: this.y(value) + 4, "text-anchor": "end", text: short(value) }));
    }
    parts.push(...(sequence.isTokens ? this.tokens(slot) : this.isMap ? heatMap(sequence, this.names, { x: LEFT, y: TOP, width: this.inner, height: this.plot }, getComputedStyle(this.element).outlineColor) : this.lines()));
    sequence.stepMask.forEach((keep, i) => {
      if (!keep) parts.push(draw("rect", { fill: "url(#hatch)", x: this.x(i) - slot / 2, y: TOP, width: slot, height: this.plot }));
    });
    parts.push(...this.strip(slot));
    parts.push(draw("text", { x: LEFT - 6, y: this.height - 6, "text-anchor": "end", text: "step" }));
    const every = Math.max(1, Math.ceil(sequence.length / 12));
    for (let i = 0; i < sequence.length; i += every) {
      parts.push(draw("text", { x: this.x(i), y: this.height - 6, "text-anchor": "middle", text: i + 1 }));
    }
    parts.push(draw("rect", { class: "cursor", x: this.x(this.cursor) - slot / 2, y: TOP - 4, width: slot, height: this.plot + 8, rx: 3 }));
    this.element.replaceChildren(draw("svg", { viewBox: `0 0 ${this.width} ${this.height}`, "aria-hidden": "true" }, ...parts));
    this.say();
  }

  lines() {
    const { sequence } = this;
    const parts = [];
    for (let feature = 0; feature < sequence.features; feature += 1) {
      let path = "";
      let joined = false;
      sequence.steps.forEach((step, i) => {
        const value = step[feature];
        if (value === null) {
          joined = false;
          parts.push(draw("rect", { class: "missing", x: this.x(i) - 1.5, y: TOP + this.plot - 6, width: 3, height: 6 }));
          return;
        }
        path += `${joined ? "L" : "M"}${this.x(i).toFixed(1)} ${this.y(value).toFixed(1)}`;
        if (!joined && sequence.length === 1) path += "h0.1";
        joined = true;
      });
      const masked = sequence.featureMask[feature] ? "" : " masked";
      const drawn = this.tool === "draw" && feature === this.drawn ? " drawn" : "";
      parts.push(draw("path", { class: `line${masked}${drawn}`, d: path, "data-feature": feature, stroke: colourOf(feature, sequence.features), "vector-effect": "non-scaling-stroke" }));
    }
    return parts;
  }

  tokens(slot) {
    const wide = 8 + 7 * Math.max(...this.sequence.steps.map((token) => String(token).length));
    const every = Math.ceil(wide / slot);
    return this.sequence.steps.flatMap((token, i) => [
      draw("circle", { cx: this.x(i), cy: this.y(token), r: Math.min(4, slot), fill: colourOf(0, 1) }),
      ...(i % every ? [] : [draw("text", { class: "token", x: this.x(i), y: TOP + this.plot + 12, "text-anchor": "middle", text: token })]),
    ]);
  }

  /** The strips: attention, the warmer the more of it a step had; or the labels of each step. */
  strip(slot) {
    const top = TOP + this.plot + 16 - (this.sequence.isTokens ? 0 : 8);
    return this.strips.flatMap((name, index) => {
      const y = top + index * (STRIP + 2);
      const frame = draw("rect", { class: "strip", x: LEFT, y, width: this.inner, height: STRIP });
      const cells = this.cells(name);
      if (!cells) return [frame];
      const drawn = cells.map(({ text, ...options }, i) => {
        const cell = draw("rect", { x: this.x(i) - slot / 2, y, width: slot, height: STRIP, ...options });
        cell.append(draw("title", { text: `step ${i + 1}: ${text}` }));
        return cell;
      });
      return [frame, ...drawn, draw("text", { x: LEFT - 6, y: y + 12, "text-anchor": "end", text: name })];
    });
  }

  /** The cells of a strip, one a step; null while they are not known. */
  cells(strip) {
    if (strip === "attention") {
      return this.attention?.map((weight) => ({ class: "attention", "fill-opacity": Math.min(weight / this.share / STRONG, 1).toFixed(3), text: `attention ${short(weight)}` }));
    }
    const { labels: names } = this.model;
    const fill = (label) => (names.includes(label) ? labelColour(names.indexOf(label), names.length) : "none");
    if (strip === "true") return this.sequence.stepLabels.map((label) => ({ class: "true-label", fill: fill(label), text: label === null ? "the data has no label" : `the data says ${label}` }));
    return this.stepLabels?.map((label) => ({ class: "step-label", fill: fill(label), text: label ?? "left out" }));
  }

  showAttention(weights) {
    this.attention = weights;
    const most = weights.reduce((best, weight, i) => (weight > weights[best] ? i : best), 0);
    const full = draw("svg", { class: "scale", viewBox: "0 0 4 1", "aria-hidden": "true", preserveAspectRatio: "none" }, ...[1, 2, 3, 4].map((each) => draw("rect", { class: "attention", x: each - 1, width: 1, height: 1, "fill-opacity": each / STRONG })));
    byId("strip-legend").replaceChildren(`Attention: equal shares are ${short(this.share)} `, full, ` ${short(STRONG * this.share)} or more; the largest is ${short(weights[most])}, at step ${most + 1}`);
    this.paint();
  }

  /** Shows the label of each step; `names` are all labels. */
  showStepLabels(labels, names) {
    this.stepLabels = labels;
    const which = this.strips.includes("true") ? "Label of each step, the data's above the answer's:" : "Label of each step:";
    byId("strip-legend").replaceChildren(which, ...names.map((name, i) => swatch(labelColour(i, names.length), name)));
    this.paint();
  }

  /** Forgets what belongs to an earlier answer. */
  forget() {
    this.attention = this.stepLabels = null;
    byId("strip-legend").replaceChildren();
  }

  // The feature under the pointer.

  hover(event) {
    if (!this.sequence || this.sequence.isTokens) return;
    const { step, value, height } = this.at(event);
    const apart = this.sequence.steps[step].map((each) => (each === null ? Infinity : Math.abs(each - value)));
    const row = Math.floor(((height - TOP) / this.plot) * this.sequence.features);
    this.near(this.isMap ? Math.min(Math.max(row, 0), apart.length - 1) : apart.indexOf(Math.min(...apart)), step);
  }

  /** Highlights a feature, and says its value at a step; null for none. */
  near(feature, step = this.cursor) {
    const picture = this.element.firstElementChild;
    if (!picture) return;
    picture.classList.toggle("one", feature !== null);
    for (const each of picture.querySelectorAll("[data-feature]")) each.classList.toggle("near", Number(each.dataset.feature) === feature);
    const value = feature === null ? null : this.sequence.steps[step]?.[feature];
    byId("near").textContent = feature === null ? "" : `${this.names[feature]}, step ${step + 1}: ${value === null ? "missing" : short(value)}`;
  }

  say() {
    const { sequence, cursor } = this;
    const step = sequence.steps[cursor];
    const value = sequence.isTokens ? `token ${step}` : step[this.drawn] === null ? "missing" : short(step[this.drawn]);
    const weight = this.attention ? `, attention ${short(this.attention[cursor])}` : "";
    this.element.setAttribute("aria-valuemax", sequence.length);
    this.element.setAttribute("aria-valuenow", cursor + 1);
    this.element.setAttribute("aria-valuetext", `step ${cursor + 1} of ${sequence.length}, ${sequence.stepMask[cursor] ? value : "left out"}${weight}`);
  }

  // The pointer.

  at(event) {
    const box = this.element.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * this.width;
    const step = Math.floor(((x - LEFT) / this.inner) * this.sequence.length);
    const height = ((event.clientY - box.top) / box.height) * this.height;
    const value = this.range[1] - ((height - TOP) / this.plot) * (this.range[1] - this.range[0]);
    return { step: Math.min(Math.max(step, 0), this.sequence.length - 1), value: Math.min(Math.max(value, this.range[0]), this.range[1]), height };
  }

  pressed(event) {
    if (event.button) return;
    this.dragging = true;
    this.element.setPointerCapture(event.pointerId);
    const { step } = this.at(event);
    this.before = null;
    this.keep = !this.sequence.stepMask[step];
    this.dragged(event);
  }

  dragged(event) {
    const { step, value } = this.at(event);
    const from = this.before ?? { step, value };
    const count = Math.abs(step - from.step);
    for (let i = 0; i <= count; i += 1) {
      const share = count ? i / count : 1;
      const index = from.step + Math.sign(step - from.step) * i;
      if (this.tool === "draw") this.set(index, from.value + share * (value - from.value));
      else this.sequence.stepMask[index] = this.keep;
    }
    this.before = { step, value };
    this.cursor = step;
    this.forget();
    this.paint();
  }

  released() {
    if (!this.dragging) return;
    this.dragging = false;
    this.changed(this.tool === "draw" ? "values" : "mask");
  }

  set(step, value) {
    if (this.sequence.isTokens) this.sequence.steps[step] = Math.round(value);
    else this.sequence.steps[step][this.drawn] = Number(value.toPrecision(5));
  }

  // The keyboard.

  key(event) {
    const { sequence } = this;
    const last = sequence.length - 1;
    const moves = { ArrowLeft: this.cursor - 1, ArrowRight: this.cursor + 1, Home: 0, End: last, PageUp: this.cursor - 10, PageDown: this.cursor + 10 };
    const turns = { ArrowUp: 1, ArrowDown: -1 };
    let what = null;
    if (event.key in moves) {
      this.cursor = Math.min(Math.max(moves[event.key], 0), last);
    } else if (event.key === " ") {
      sequence.stepMask[this.cursor] = !sequence.stepMask[this.cursor];
      what = "mask";
    } else if (event.key in turns) {
      const now = sequence.isTokens ? sequence.steps[this.cursor] : sequence.steps[this.cursor][this.drawn] ?? (this.range[0] + this.range[1]) / 2;
      const by = sequence.isTokens ? 1 : (this.range[1] - this.range[0]) / 40;
      const value = now + turns[event.key] * by;
      this.set(this.cursor, sequence.isTokens ? Math.min(Math.max(value, this.range[0]), this.range[1]) : value);
      what = "values";
    } else if (event.key === "Delete" && !sequence.isTokens) {
      sequence.steps[this.cursor][this.drawn] = null;
      what = "values";
    } else {
      return;
    }
    event.preventDefault();
    if (what) this.forget();
    this.paint();
    if (what) this.changed(what);
  }
}

/** The pattern of steps that are left out. */
function hatch() {
  const pattern = draw("pattern", { id: "hatch", width: 7, height: 7, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" });
  pattern.append(draw("line", { class: "hatch-line", x1: 0, x2: 0, y1: 0, y2: 7 }));
  return draw("defs", {}, pattern);
}

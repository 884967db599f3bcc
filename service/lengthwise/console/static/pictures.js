// The pictures of the live view, on canvases: each is a function of its data.

import { duration } from "./dom.js";

const PAD = 6;
const LEFT = 46;
export const WINDOW_SECONDS = 30;

/** A canvas in the page's colours, sharp on every screen. */
export class Canvas {
  constructor(element) {
    this.element = element;
    this.height = Number(element.getAttribute("height"));
    this.probe = document.createElement("span");
    this.probe.hidden = true;
    element.after(this.probe);
  }

  /** Clears it; returns its context and width in pixels of the page. */
  begin() {
    const { element, height } = this;
    const scale = window.devicePixelRatio || 1;
    const width = element.clientWidth || 600;
    if (element.width !== Math.round(width * scale)) {
      element.width = Math.round(width * scale);
      element.height = Math.round(height * scale);
      element.style.height = `${height}px`;
    }
    const context = element.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = "11px system-ui, sans-serif";
    context.lineWidth = 1;
    return { context, width, height };
  }

  /** A colour of the style sheet, as it is in the theme of now. */
  colour(name) {
    this.probe.style.color = `var(--${name})`;
    return getComputedStyle(this.probe).color;
  }

  say(text) {
    this.element.setAttribute("aria-label", text);
  }
}

function hatched(context, colour) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 6;
  const pen = tile.getContext("2d");
  pen.strokeStyle = colour;
  pen.lineWidth = 1;
  for (const shift of [-6, 0, 6]) {
    pen.beginPath();
    pen.moveTo(shift, 6);
    pen.lineTo(shift + 6, 0);
    pen.stroke();
  }
  return context.createPattern(tile, "repeat");
}

function empty(canvas, context, width, height, text) {
  context.fillStyle = canvas.colour("soft");
  context.textAlign = "center";
  context.fillText(text, width / 2, height / 2);
  context.textAlign = "start";
}

/** Batches as rectangles of rows x width, the newest first; valid steps filled, padding hatched. */
export function drawBatches(canvas, batches) {
  const { context, width, height } = canvas.begin();
  if (!batches.length) {
    empty(canvas, context, width, height, "No batch has run since you look. Send some sequences.");
    return;
  }
  const plot = height - 44;
  const step = Math.min(4, Math.max(0.12, 150 / Math.max(...batches.slice(0, 40).map((batch) => batch.width))));
  const wideOf = (batch) => Math.max(batch.width * step, 6);
  let room = width;
  const recent = [];
  for (const batch of batches) {
    room -= wideOf(batch) + PAD;
    if (room < -PAD && recent.length) break;
    recent.push(batch);
  }
  const row = Math.min(14, plot / Math.max(...recent.map((batch) => batch.rows)));
  const slowest = Math.max(...recent.map((batch) => Math.max(batch.measured_seconds, batch.predicted_seconds ?? 0)));
  const [accent, soft, bad, line] = ["accent", "soft", "bad", "line"].map((name) => canvas.colour(name));
  const hatch = hatched(context, soft);
  let x = 0;
  let free = 0;
  for (const batch of recent) {
    const wide = wideOf(batch);
    const high = batch.rows * row;
    const top = 12 + (plot - high);
    context.fillStyle = batch.lengths ? hatch : bad;
    context.fillRect(x, top, wide, high);
    context.fillStyle = accent;
    batch.lengths?.forEach((length, i) => context.fillRect(x, top + i * row, (length / batch.width) * wide, Math.max(row - (row > 3 ? 1 : 0), 0.6)));
    context.strokeStyle = line;
    context.strokeRect(x + 0.5, top + 0.5, wide - 1, high - 1);
    const bar = (seconds) => Math.max((seconds / slowest) * wide, 1);
    context.strokeStyle = soft;
    context.strokeRect(x + 0.5, height - 25.5, bar(batch.predicted_seconds ?? 0), 4);
    context.fillStyle = canvas.colour("second");
    context.fillRect(x, height - 19, bar(batch.measured_seconds), 4);
    const size = `${batch.rows}×${batch.width}`;
    const end = x + context.measureText(size).width + PAD;
    if (x >= free && end <= width) {
      context.fillStyle = soft;
      context.fillText(size, x, height - 2);
      free = end;
    }
    x += wide + PAD;
  }
  const last = recent[0];
  canvas.say(`The last batches: the newest has ${last.rows} rows of ${last.width} steps, ${last.valid_steps} of ${last.rows * last.width} steps are valid`);
}

/** The sequences that wait as bars of their lengths, in the order in which they came. */
export function drawQueue(canvas, queues) {
  const { context, width, height } = canvas.begin();
  const lengths = queues.flatMap((queue) => queue.lengths);
  if (!lengths.length) {
    empty(canvas, context, width, height, "empty");
    canvas.say("No sequence waits");
    return;
  }
  const most = Math.max(...lengths);
  const plot = height - 16;
  const slot = Math.min(14, (width - LEFT) / lengths.length);
  scale(canvas, context, width, plot, most, (value) => String(Math.round(value)));
  context.fillText("steps of each sequence; the first came first", LEFT, height - 3);
  context.fillStyle = canvas.colour("accent");
  lengths.forEach((length, i) => {
    const high = (length / most) * (plot - 8);
    context.fillRect(LEFT + i * slot, plot - high, Math.max(slot - 2, 0.75), high);
  });
  canvas.say(`${lengths.length} sequences wait, the longest has ${most} steps`);
}

/** Measured against predicted time of the batches, both logarithmic, with the line where they are equal. */
export function drawCosts(canvas, batches) {
  const { context, width, height } = canvas.begin();
  const points = batches.filter((batch) => batch.predicted_seconds > 0 && batch.measured_seconds > 0);
  if (!points.length) {
    empty(canvas, context, width, height, "no batch yet");
    return;
  }
  const all = points.flatMap((batch) => [batch.predicted_seconds, batch.measured_seconds]).map(Math.log10);
  const low = Math.min(...all) - 0.1;
  const high = Math.max(...all) + 0.1;
  const plot = height - 18;
  const x = (seconds) => LEFT + ((Math.log10(seconds) - low) / (high - low)) * (width - LEFT - PAD);
  const y = (seconds) => PAD + (1 - (Math.log10(seconds) - low) / (high - low)) * (plot - PAD);
  context.strokeStyle = canvas.colour("line");
  context.strokeRect(LEFT + 0.5, PAD + 0.5, width - LEFT - PAD, plot - PAD);
  context.setLineDash([4, 4]);
  context.strokeStyle = canvas.colour("soft");
  context.beginPath();
  context.moveTo(x(10 ** low), y(10 ** low));
  context.lineTo(x(10 ** high), y(10 ** high));
  context.stroke();
  context.setLineDash([]);
  context.fillStyle = canvas.colour("second");
  for (const batch of points) {
    context.globalAlpha = 0.65;
    context.beginPath();
    context.arc(x(batch.predicted_seconds), y(batch.measured_seconds), 3, 0, 7);
    context.fill();
  }
  context.globalAlpha = 1;
  context.fillStyle = canvas.colour("soft");
  context.fillText(duration(10 ** high), 0, PAD + 10);
  context.fillText(duration(10 ** low), 0, plot);
  context.textAlign = "end";
  context.fillText("predicted →", width - PAD, height - 3);
  context.textAlign = "start";
  context.fillText("measured ↑", LEFT + 6, PAD + 14);
  const ratios = points.map((batch) => batch.measured_seconds / batch.predicted_seconds).sort((a, b) => a - b);
  canvas.say(`${points.length} batches; half of them took up to ${ratios[ratios.length >> 1].toFixed(2)} times what was predicted`);
}

/** The median and the slowest hundredth of the last half minute. */
export function drawLatency(canvas, frames) {
  const { context, width, height } = canvas.begin();
  const known = frames.filter((frame) => frame.latency_seconds.p99 !== null);
  if (!known.length) {
    empty(canvas, context, width, height, "no answer yet");
    return;
  }
  const most = Math.max(...known.map((frame) => frame.latency_seconds.p99));
  const plot = height - 16;
  scale(canvas, context, width, plot, most, duration);
  const x = across(frames, width);
  for (const [name, colour] of [["p99", "second"], ["p50", "accent"]]) {
    context.strokeStyle = context.fillStyle = canvas.colour(colour);
    context.lineWidth = 2;
    context.beginPath();
    known.forEach((frame, i) => {
      const y = plot - (frame.latency_seconds[name] / most) * (plot - 8);
      const apart = i && frame.time - known[i - 1].time > 1.5;
      if (i && !apart) context.lineTo(x(frame), y);
      else context.moveTo(x(frame), y);
      context.fillRect(x(frame) - 1, y - 1, 2, 2);
    });
    context.stroke();
  }
  context.fillStyle = canvas.colour("accent");
  context.fillText("median", LEFT + 70, height - 3);
  context.fillStyle = canvas.colour("second");
  context.fillText("slowest hundredth", LEFT + 118, height - 3);
  times(canvas, context, LEFT, width, height);
  const last = known.at(-1).latency_seconds;
  canvas.say(`Latency: the median is ${duration(last.p50)}, the slowest hundredth ${duration(last.p99)}`);
}

/** How busy each thread was: a strip for each, over the last half minute. */
export function drawRunners(canvas, frames) {
  const { context, width, height } = canvas.begin();
  const last = frames.at(-1);
  if (!last) {
    empty(canvas, context, width, height, "not known yet");
    return;
  }
  const own = Array.from({ length: last.runners }, (_, i) => `runner-${i}`);
  const others = [...new Set(frames.flatMap((frame) => Object.keys(frame.busy_seconds)))].filter((name) => !own.includes(name));
  const names = [...own, ...others.sort()];
  const lane = Math.min(44, (height - 14) / names.length);
  const left = 74;
  const x = across(frames, width, left);
  const shares = names.map((name, i) => {
    const bottom = (i + 1) * lane - 4;
    context.fillStyle = canvas.colour("sunk");
    context.fillRect(left, bottom - lane + 10, width - left, lane - 10);
    context.fillStyle = canvas.colour(name.startsWith("runner") ? "accent" : "second");
    frames.forEach((frame) => {
      const share = Math.min(1, (frame.busy_seconds[name] ?? 0) / frame.seconds);
      const wide = Math.max(((frame.seconds / WINDOW_SECONDS) * (width - left)), 1.5);
      context.fillRect(x(frame) - wide, bottom - share * (lane - 10), wide, share * (lane - 10));
    });
    context.fillStyle = canvas.colour("soft");
    context.fillText(name, 0, bottom - lane / 2 + 8);
    return `${name} ${Math.round((100 * (last.busy_seconds[name] ?? 0)) / last.seconds)} %`;
  });
  times(canvas, context, left, width, height);
  canvas.say(`Busy: ${shares.join(", ")}`);
}

/** The place of a frame: the newest on the right, half a minute wide. */
function across(frames, width, left = LEFT) {
  const last = frames.at(-1).time;
  return (frame) => width - ((last - frame.time) / WINDOW_SECONDS) * (width - left);
}

/** What the time axis means. */
function times(canvas, context, left, width, height) {
  context.fillStyle = canvas.colour("soft");
  context.fillText(`${WINDOW_SECONDS} s ago`, left, height - 3);
  context.textAlign = "end";
  context.fillText("now", width, height - 3);
  context.textAlign = "start";
}

function scale(canvas, context, width, plot, most, text) {
  context.strokeStyle = canvas.colour("line");
  context.fillStyle = canvas.colour("soft");
  for (const share of [0, 0.5, 1]) {
    const y = plot - share * (plot - 8);
    context.beginPath();
    context.moveTo(LEFT, Math.round(y) + 0.5);
    context.lineTo(width, Math.round(y) + 0.5);
    context.stroke();
    context.fillText(text(share * most), 0, y + 4);
  }
}

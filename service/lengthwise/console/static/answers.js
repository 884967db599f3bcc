// An answer as people read it: the label, probabilities as bars, what was missing, and refusals with their places.

import { colourOf, draw, duration, make, short } from "./dom.js";

const MOST_BARS = 12;

/** The element of one answer; `beside` is the prediction of another version, to which it is compared. */
export function answerOf(name, answer, sequence, beside = null) {
  const [prediction] = answer.predictions;
  const parts = [make("h3", { text: name }), title(prediction, answer.labels)];
  if (prediction.step_labels) parts.push(stepLabels(prediction, answer.labels));
  else parts.push(bars(prediction, answer.labels));
  parts.push(facts(prediction, answer, sequence, beside));
  return make("div", { class: "answer" }, ...parts);
}

function title(prediction, labels) {
  if (prediction.step_labels) {
    const kept = prediction.step_labels.filter((label) => label !== null);
    const counts = labels.map((label) => [kept.filter((each) => each === label).length, label]).sort((a, b) => b[0] - a[0]);
    return make("p", { class: "label", text: counts[0][1] }, make("small", { text: `${counts[0][0]} of ${kept.length} steps` }));
  }
  if (prediction.assigned) {
    return make("p", { class: "label", text: prediction.assigned.join(", ") || "none" }, make("small", { text: "assigned" }));
  }
  return make("p", { class: "label", text: prediction.label }, make("small", { text: `probability ${prediction.score.toPrecision(4)}` }));
}

function bars(prediction, labels) {
  const best = prediction.probabilities.indexOf(Math.max(...prediction.probabilities));
  let order = labels.map((_, i) => i);
  if (labels.length > MOST_BARS) order = order.sort((a, b) => prediction.probabilities[b] - prediction.probabilities[a]).slice(0, MOST_BARS);
  const rows = order.flatMap((i) => {
    const fill = make("div", { class: "fill" });
    fill.style.width = `${(100 * prediction.probabilities[i]).toFixed(2)}%`;
    const chosen = i === best || prediction.assigned?.includes(labels[i]) ? " best" : "";
    return [
      make("dt", { text: labels[i], title: labels[i] }),
      make("dd", { class: `bar-cell${chosen}`, "aria-hidden": "true" }, make("div", { class: "track" }, fill)),
      make("dd", { class: "number", text: precise(prediction.probabilities[i]) }),
    ];
  });
  const list = make("dl", { class: "bars", "aria-label": "Probabilities" }, ...rows);
  if (order.length === labels.length) return list;
  return make("div", {}, list, make("p", { class: "soft small", text: `The ${MOST_BARS} most probable of ${labels.length} labels.` }));
}

const precise = (value) => (value >= 0.001 || value === 0 ? value.toFixed(4) : value.toExponential(1));

/** One colour a label, a cell a step; steps that were left out stay empty. */
function stepLabels(prediction, labels) {
  const count = prediction.step_labels.length;
  const cells = prediction.step_labels.map((label, i) => {
    const place = labels.indexOf(label);
    const cell = draw("rect", { x: i, y: 0, width: 1, height: 1, fill: label === null ? "none" : colourOf(place, labels.length) });
    cell.append(draw("title", { text: `step ${i + 1}: ${label ?? "left out"}` }));
    return cell;
  });
  const picture = draw("svg", { class: "step-labels", viewBox: `0 0 ${count} 1`, preserveAspectRatio: "none", role: "img", "aria-label": "The label of each step" }, ...cells);
  const names = labels.map((label) => `${label}: ${prediction.step_labels.filter((each) => each === label).length}`);
  return make("div", {}, picture, make("p", { class: "soft small", text: `Steps of each label: ${names.join(", ")}` }));
}

function facts(prediction, answer, sequence, beside) {
  const lines = [`${prediction.length} ${prediction.length === 1 ? "step" : "steps"} computed`];
  if (sequence.leftOut) lines[0] += `, ${sequence.leftOut} left out`;
  if (sequence.missing) lines.push(`${sequence.missing} values were missing`);
  if (prediction.windows) lines.push(`answered in ${prediction.windows.length} windows`);
  const stages = Object.fromEntries([...(answer.timing ?? "").matchAll(/([\w-]+);dur=([\d.]+)/g)].map((part) => [part[1], Number(part[2])]));
  const told = Object.entries(stages).map(([stage, ms]) => `${stage} ${duration(ms / 1000)}`);
  lines.push(`${duration(answer.milliseconds / 1000)} here${told.length ? ` (${told.join(", ")})` : ""}`);
  if (sequence.label !== null && sequence.label !== undefined) lines.push(`the file says: ${sequence.label}`);
  if (beside) lines.push(comparison(prediction, beside));
  return make("ul", { class: "facts" }, ...lines.map((text) => make("li", { text })));
}

function comparison(prediction, beside) {
  const mine = flat(prediction);
  const other = flat(beside);
  if (mine.length !== other.length) return "the two versions have different labels";
  const most = mine.reduce((found, value, i) => Math.max(found, Math.abs(value - other[i])), 0);
  return most === 0 ? "the same digits as the other version" : `largest difference of a probability to the other: ${short(most)}`;
}

export const flat = (prediction) => prediction.probabilities.flat().filter((value) => value !== null);

/** The element of a refusal. */
export function refusalOf(name, error) {
  const told = (error.errors ?? []).map(({ pointer, detail }) => `${placeOf(pointer)}${detail}`).filter((text) => text !== error.message);
  const places = told.slice(0, 5).map((text) => make("li", { text }));
  const more = (error.total ?? 0) - places.length;
  if (places.length && more > 0) places.push(make("li", { text: `and ${more} more` }));
  const retry = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  return make(
    "div",
    { class: "answer" },
    make("h3", { text: name }),
    make("p", { class: "problem" }, make("b", { text: error.title ?? "No answer" }), `${error.message}${retry}`),
    ...(places.length ? [make("ul", { class: "facts" }, ...places)] : []),
  );
}

/** `/sequences/0/steps/3/1` as "step 4, value 2: ". */
function placeOf(pointer) {
  const numbers = pointer.split("/").slice(2).filter((part) => /^\d+$/.test(part)).map(Number).slice(1);
  if (!numbers.length) return "";
  return `step ${numbers[0] + 1}${numbers.length > 1 ? `, value ${numbers[1] + 1}` : ""}: `;
}

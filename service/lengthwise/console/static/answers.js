// An answer as people read it: the label, probabilities as bars, what was missing, and refusals with their places.

import { counted, cut, duration, labelColour, make, short, swatch } from "./dom.js";

const MOST_BARS = 12;

/** The element of one answer; `beside` is the prediction of another version, to which it is compared. */
export function answerOf(model, answer, sequence, beside = null) {
  const [prediction] = answer.predictions;
  if (prediction.values) return vector(model, prediction);
  const parts = [make("h3", { text: nameOf(model) }), title(prediction, answer.labels)];
  if (prediction.step_labels) parts.push(stepLabels(prediction, answer.labels));
  else parts.push(bars(prediction, answer.labels, prediction.assigned ? model.threshold : null));
  parts.push(facts(prediction, answer, sequence, beside));
  if (prediction.assigned) parts.at(-1).prepend(make("li", { text: `assigned from a probability of ${model.threshold} on: the line in the bars` }));
  return make("div", { class: "answer" }, ...parts);
}

/** The element of an answer of a model without a head. */
function vector(model, { values }) {
  const more = values.length > MOST_BARS ? ", …" : "";
  const first = make("p", { class: "soft small", text: values.slice(0, MOST_BARS).map((value) => short(value)).join(", ") + more });
  return make("div", { class: "answer" }, make("h3", { text: nameOf(model) }), make("p", { class: "label", text: counted(values.length, "number") }), first);
}

const nameOf = (model) => `${model.model}, version ${model.version}`;

function title(prediction, labels) {
  if (prediction.step_labels) {
    const present = prediction.step_labels.filter((label) => label !== null);
    const counts = labels.map((label) => [present.filter((each) => each === label).length, label]).sort((a, b) => b[0] - a[0]);
    return make("p", { class: "label", text: counts[0][1] }, make("small", { text: `${counts[0][0]} of ${present.length} steps` }));
  }
  if (prediction.assigned) {
    return make("p", { class: "label", text: prediction.assigned.join(", ") || "none" }, make("small", { text: "assigned" }));
  }
  return make("p", { class: "label", text: prediction.label }, make("small", { text: `probability ${prediction.score.toPrecision(4)}` }));
}

function bars(prediction, labels, threshold) {
  const best = prediction.probabilities.indexOf(Math.max(...prediction.probabilities));
  let order = labels.map((_, i) => i);
  if (labels.length > MOST_BARS) order = order.sort((a, b) => prediction.probabilities[b] - prediction.probabilities[a]).slice(0, MOST_BARS);
  const rows = order.flatMap((i) => {
    const fill = make("div", { class: "fill" });
    fill.style.width = `${(100 * prediction.probabilities[i]).toFixed(2)}%`;
    const line = threshold === null ? [] : [make("div", { class: "threshold" })];
    for (const each of line) each.style.left = `${100 * threshold}%`;
    const chosen = i === best || prediction.assigned?.includes(labels[i]) ? " best" : "";
    return [
      make("dt", { text: labels[i], title: labels[i] }),
      make("dd", { class: `bar-cell${chosen}`, "aria-hidden": "true" }, make("div", { class: "track" }, fill, ...line)),
      make("dd", { class: "number", text: precise(prediction.probabilities[i]) }),
    ];
  });
  const list = make("dl", { class: "bars", "aria-label": "Probabilities" }, ...rows);
  if (order.length === labels.length) return list;
  return make("div", {}, list, make("p", { class: "soft small", text: `The ${MOST_BARS} most probable of ${labels.length} labels.` }));
}

const precise = (value) => (value >= 0.001 || value === 0 ? value.toFixed(4) : value.toExponential(1));

/** How many steps have each label; the picture of the sequence shows which. */
function stepLabels(prediction, labels) {
  const counts = labels.map((label, i) => swatch(labelColour(i, labels.length), `${label}: ${prediction.step_labels.filter((each) => each === label).length}`));
  return make("p", { class: "legend small" }, "Steps of each label:", ...counts);
}

function facts(prediction, answer, sequence, beside) {
  const lines = [`${counted(prediction.length, "step")} computed`];
  if (sequence.leftOut) lines[0] += `, ${sequence.leftOut} left out`;
  if (sequence.missing) lines.push(`${counted(sequence.missing, "value")} ${sequence.missing === 1 ? "was" : "were"} missing`);
  if (prediction.windows) lines.push(`answered in ${counted(prediction.windows.length, "window")}`);
  const stages = Object.fromEntries([...(answer.timing ?? "").matchAll(/([\w-]+);dur=([\d.]+)/g)].map((part) => [part[1], Number(part[2])]));
  const parts = Object.entries(stages).map(([stage, ms]) => `${stage} ${duration(ms / 1000)}`);
  lines.push(`${duration(answer.milliseconds / 1000)} here${parts.length ? ` (${parts.join(", ")})` : ""}`);
  lines.push(...truth(prediction, answer.labels, sequence));
  if (beside) lines.push(comparison(prediction, beside));
  return make("ul", { class: "facts" }, ...lines.map((text) => make("li", { text })));
}

/** What the data says, where it can be compared: the label, or of a model with an answer for each step how many are right. */
function truth(prediction, labels, sequence) {
  const { label } = sequence;
  const [right, compared] = hits(pairsOf(sequence, prediction));
  if (prediction.step_labels) return compared ? [`${right} of ${counted(compared, "step")} as the data says`] : [];
  if (!compared) return [];
  const known = [label].flat().every((each) => labels.includes(each));
  return [`the data says: ${cut([label].flat().join(", ") || "none")}${known ? "" : ", which is no label of this model"}`];
}

/**
 * What can be compared, as [label of the data, answer]: one pair, or of a model with an answer for each step one a step.
 * Steps without a label are left out; so is, where the labels of the model are given, what is none of them.
 */
export function pairsOf(sequence, prediction, known = null) {
  const { label } = sequence;
  if (label === null || label === undefined || prediction.error) return [];
  const has = (each) => each !== null && (!known || known.includes(each));
  if (prediction.label !== undefined) return Array.isArray(label) || !has(label) ? [] : [[label, prediction.label]];
  const sorted = (labels) => JSON.stringify([labels].flat().toSorted());
  if (prediction.assigned) return [[sorted(label), sorted(prediction.assigned)]];
  const labels = sequence.stepLabels;
  if (!labels) return [];
  return prediction.step_labels.map((answer, i) => [labels[i], answer]).filter(([each, answer]) => answer !== null && has(each));
}

/** How many answers are the label, and how many were compared. */
export const hits = (pairs) => [pairs.filter(([label, answer]) => label === answer).length, pairs.length];

function comparison(prediction, beside) {
  const mine = flat(prediction);
  const other = flat(beside);
  if (mine.length !== other.length) return "the two versions have different labels";
  const most = mine.reduce((largest, value, i) => Math.max(largest, Math.abs(value - other[i])), 0);
  return most === 0 ? "the same digits as the other version" : `largest difference of a probability to the other: ${short(most)}`;
}

export const flat = (prediction) => (prediction.values ?? prediction.probabilities).flat().filter((value) => value !== null);

/** The element of a refusal. */
export function refusalOf(model, error) {
  const causes = new Map(); // one line for each cause, with its first place
  for (const { pointer, detail } of error.errors ?? []) causes.set(detail, [...(causes.get(detail) ?? []), placeOf(pointer, model.names)]);
  const listed = [...causes].filter(([detail, [first]]) => first + detail !== error.message);
  const places = listed.slice(0, 5).map(([detail, [first, ...others]]) => make("li", { text: `${others.length ? `${first.replace(": ", "")} and ${others.length} more places: ` : first}${detail}` }));
  const more = (error.total ?? 0) - (error.errors ?? []).length;
  if (places.length && more > 0) places.push(make("li", { text: `and ${more} more` }));
  const retry = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  return make(
    "div",
    { class: "answer" },
    make("h3", { text: nameOf(model) }),
    make("p", { class: "problem" }, make("b", { text: error.title ?? "No answer" }), `${error.message}${retry}`),
    ...(places.length ? [make("ul", { class: "facts" }, ...places)] : []),
  );
}

/** `/sequences/0/steps/3/1` as "step 4, feature 1: ", with features counted as in every other message, or by their names. */
function placeOf(pointer, names) {
  const numbers = pointer.split("/").slice(2).filter((part) => /^\d+$/.test(part)).map(Number).slice(1);
  if (!numbers.length) return "";
  return `step ${numbers[0] + 1}${numbers.length > 1 ? `, ${names?.[numbers[1]] ?? `feature ${numbers[1]}`}` : ""}: `;
}

// A sequence with its masks; sequences from text; invented ones.

/** One sequence: `steps` are arrays of numbers and nulls, or token ids. */
export class Sequence {
  /** `origin` says where it comes from; `of` is the model whose example it is; `names` are those of its features. */
  constructor(steps, { id = "", label = null, origin = "", of = null, names = null, static: beside } = {}) {
    this.steps = steps;
    this.static = beside;
    this.names = names;
    this.origin = origin;
    this.of = of;
    this.id = id;
    const isNone = (each) => each === null || (String(each) === "-100" && label.length === steps.length); // of a step
    const text = (each) => (each === null ? null : String(each)); // a number is its digits
    this.label = Array.isArray(label) ? label.map((each) => (isNone(each) ? null : String(each))) : text(label);
    this.stepMask = steps.map(() => true);
    this.featureMask = Array.isArray(steps[0]) ? steps[0].map(() => true) : [];
  }

  get length() {
    return this.steps.length;
  }

  get features() {
    return this.featureMask.length;
  }

  get isTokens() {
    return !Array.isArray(this.steps[0]);
  }

  get leftOut() {
    return this.stepMask.filter((keep) => !keep).length;
  }

  /** How many values are missing at the kept steps, those of masked features too. */
  get missing() {
    if (this.isTokens) return 0;
    const masked = (value, feature) => value === null || !this.featureMask[feature];
    return this.steps.reduce((sum, step, i) => sum + (this.stepMask[i] ? step.filter(masked).length : 0), 0);
  }

  /** The label of each step; null without labels. One label is that of all steps. */
  get stepLabels() {
    if (typeof this.label === "string") return this.steps.map(() => this.label);
    return Array.isArray(this.label) && this.label.length >= this.length ? this.label.slice(0, this.length) : null;
  }

  /** Makes it longer, by its last step again, or shorter. */
  resize(length) {
    while (this.length > length) {
      this.steps.pop();
      this.stepMask.pop();
    }
    while (this.length < length) {
      const last = this.steps[this.length - 1];
      this.steps.push(this.isTokens ? last : [...last]);
      this.stepMask.push(true);
    }
  }

  /** As a request has it: an object only where it has to be. */
  asRequest() {
    const parts = { steps: this.steps };
    if (this.leftOut) parts.step_mask = this.stepMask;
    if (this.featureMask.includes(false)) parts.feature_mask = this.featureMask;
    if (this.static) parts.static = this.static;
    return Object.keys(parts).length === 1 ? this.steps : parts;
  }
}

const MOST = 3.4028235e38;
const isValue = (value) => value === null || typeof value === "number";
const isStep = (value) => Array.isArray(value) && value.length > 0 && value.every(isValue);

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

/** The sequences in a text: JSON in any of the usual forms, or a step a line. Throws an Error that says what is wrong. */
export function parse(text, model) {
  const tokens = model?.input === "tokens";
  const trimmed = text.trim();
  if (!trimmed) throw new Error("There is nothing in it.");
  if (!/^[[{]/.test(trimmed)) return [one(plain(trimmed, tokens), model)];
  let value;
  try {
    value = JSON.parse(trimmed);
  } catch (error) {
    throw new Error(`This is not JSON: ${error.message}. A missing value is null.`);
  }
  const list = Array.isArray(value?.sequences) ? value.sequences : Array.isArray(value?.instances) ? value.instances : null;
  if (list && !list.length) throw new Error("There is no sequence in it.");
  if (list) return list.map((each) => one(each, model));
  const areSteps = Array.isArray(value) && (isStep(value) || value.every((each) => isStep(each) || (isObject(each) && !Array.isArray(each.steps))));
  return Array.isArray(value) && !areSteps ? value.map((each) => one(each, model)) : [one(value, model)];
}

/** Steps that are objects, as arrays in the order of the model's names. */
function byNames(steps, names) {
  if (!steps.some(isObject)) return steps;
  if (!names) throw new Error("The steps are objects, and the features of this model have no names: give arrays.");
  if (!steps.every(isObject)) throw new Error("The steps must all be objects, or all be arrays.");
  const known = new Set(names);
  const other = steps.flatMap(Object.keys).find((name) => !known.has(name));
  if (other !== undefined) throw new Error(`The model has no feature “${other.slice(0, 40)}”. It takes ${names.join(", ")}.`);
  return steps.map((step) => names.map((name) => step[name] ?? null));
}

function one(value, model) {
  const tokens = model?.input === "tokens";
  const entries = Array.isArray(value) ? value : value?.steps;
  if (!Array.isArray(entries) || !entries.length) throw new Error("A sequence is an array of steps, or an object with steps, and has at least one.");
  const steps = byNames(entries, model?.names);
  const sequence = new Sequence(tokens ? steps : steps.map((step) => (Array.isArray(step) ? [...step] : [step])), value);
  if (tokens && !steps.every((token) => Number.isInteger(token) && token >= 0)) throw new Error("A token is a whole number from 0.");
  if (steps.flat().some((each) => Math.abs(each) > MOST)) throw new Error("A number is too large for float32.");
  if (!tokens && !sequence.steps.every(isStep)) throw new Error("A step is an array of numbers; a missing value is null.");
  if (!tokens && sequence.steps.some((step) => step.length !== sequence.features)) throw new Error("The steps have different numbers of features.");
  if (Array.isArray(value?.step_mask)) sequence.stepMask = steps.map((_, i) => value.step_mask[i] !== false);
  if (Array.isArray(value?.feature_mask)) sequence.featureMask = sequence.featureMask.map((_, i) => value.feature_mask[i] !== false);
  return sequence;
}

function plain(text, tokens) {
  // Between two separators stands a value, or nothing where it is missing, as in a CSV file; blanks alone only separate.
  const separator = [",", ";", "\t"].find((each) => text.includes(each)) ?? /\s+/;
  const rows = text.split(/\r?\n/).filter((line) => line.trim()).map((line) => (separator === "\t" ? line : line.trim()).split(separator));
  const number = (cell) => {
    const word = cell.trim();
    if (/^(nan|null|na|\?)?$/i.test(word)) return null;
    if (Number.isNaN(Number(word))) throw new Error(`“${word.slice(0, 40)}” is not a number.`);
    return Number(word);
  };
  if (tokens) return rows.flat().map(number);
  const steps = rows.map((row) => row.map(number));
  if (steps.some((step) => step.length !== steps[0].length)) throw new Error("The lines have different numbers of values.");
  return steps;
}

/** A random whole number from `low` to `high`. */
const between = (low, high) => low + Math.floor(Math.random() * (high - low + 1));

/** A normal number. */
export function normal() {
  return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
}

/** A length between those of the model's recordings, if it has some; else, or around a given median, a lognormal one. */
export function usualLength(model, median = null) {
  const edges = (median === null && model.usual_lengths) || [];
  const position = between(0, Math.max(edges.length - 2, 0));
  const usual = edges.length ? between(Math.round(edges[position]), Math.round(edges[position + 1] ?? edges[position])) : null;
  const length = usual ?? Math.round((median ?? 24) * Math.exp(0.8 * normal()));
  return Math.min(Math.max(length, model.min_length ?? 1), model.max_length ?? 1024);
}

/** Invented steps for a model: smooth curves in the range of its training data, or random tokens. */
export function invent(model, length) {
  if (model.input === "tokens") return Array.from({ length }, () => between(0, model.vocabulary - 1));
  const columns = Array.from({ length: model.features }, (_, feature) => {
    const mean = model.mean?.[feature] ?? 0;
    const spread = model.std?.[feature] ?? 1;
    const waves = [1, 2, 3].map((turn) => ({ size: normal() / turn, turn: turn * (0.5 + Math.random()), from: 6.3 * Math.random() }));
    const level = 0.6 * normal();
    return Array.from({ length }, (_, step) => {
      const position = step / Math.max(length - 1, 1);
      const curve = waves.reduce((sum, { size, turn, from }) => sum + size * Math.sin(2 * Math.PI * turn * position + from), level);
      return Number((mean + spread * (0.8 * curve + 0.12 * normal())).toFixed(4));
    });
  });
  return Array.from({ length }, (_, step) => columns.map((column) => column[step]));
}

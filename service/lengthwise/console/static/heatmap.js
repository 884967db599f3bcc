// The features of a sequence as rows of colours, for as many features as lines could not be told apart.

import { draw, extent } from "./dom.js";

const NAME_PIXELS = 13;
const MOST_CHARACTERS = 8;

/** A name as it fits beside its row; a feature without one has its number, from 0 as everywhere. */
function label(name) {
  const short = name.replace(/^feature (\d+)$/, "$1");
  return short.length > MOST_CHARACTERS ? `${short.slice(0, MOST_CHARACTERS - 1)}…` : short;
}

/** The elements in a box {x, y, width, height}: each row from its lowest value (light) to its highest; a missing value has no colour. */
export function heatMap(sequence, names, box, colour) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [sequence.length, sequence.features];
  const pen = canvas.getContext("2d");
  pen.fillStyle = colour;
  const row = box.height / sequence.features;
  const parts = [];
  for (let feature = 0; feature < sequence.features; feature += 1) {
    const values = sequence.steps.map((step) => step[feature]);
    const [low, high] = extent(values.filter((value) => value !== null));
    const span = high - low;
    const most = sequence.featureMask[feature] ? 0.92 : 0.15;
    values.forEach((value, i) => {
      pen.globalAlpha = value === null ? 0 : 0.08 + most * (span ? (value - low) / span : 0.5);
      pen.fillRect(i, feature, 1, 1);
    });
    const top = box.y + feature * row;
    parts.push(draw("rect", { class: "row", "data-feature": feature, x: box.x, y: top, width: box.width, height: row }));
    if (feature % Math.ceil(NAME_PIXELS / row) === 0) parts.push(draw("text", { x: box.x - 6, y: top + row / 2 + 4, "text-anchor": "end", text: label(names[feature]) }));
  }
  return [draw("image", { href: canvas.toDataURL(), preserveAspectRatio: "none", ...box }), ...parts];
}

// Several prompts as one: what they have in common is asked once, the rest under names of its own.
//
// At each prompt that it takes up and ends, the host tells all its pages, and they ask for queue and history and draw
// themselves anew. That costs more than a picture of a one-step model; pictures that are asked together share it.

import { isLink } from "./graph.js";

const MARK = "~"; // in no id of the page's: those are numbers, in a subgraph "5:7"

/** What `prompts`, in API format, ask for, as one: node "7" of the prompt at index 2 is "7~2" there, or goes by the
 * name of an equal one before it. Returns { prompt, targets }: the names of `targets` in all of them. */
export function together(prompts, targets) {
  const prompt = {};
  const equal = new Map(); // what a node of the prompt is -> its name there
  const asked = prompts.flatMap((one, index) => {
    const names = {};
    const add = (id) => {
      if (id in names || !one[id]) return names[id] ?? id; // a link to a node that is not there is left to the host
      names[id] = index ? `${id}${MARK}${index}` : id; // before what leads here is added: a circle is left to the host
      const { inputs, ...rest } = one[id];
      const renamed = (value) => (isLink(value) ? [add(value[0]), value[1]] : value);
      const linked = Object.entries(inputs).map(([key, value]) => [key, renamed(value)]);
      const node = { ...rest, inputs: Object.fromEntries(linked) };
      const what = JSON.stringify([id, node.class_type, linked]);
      if (!equal.has(what)) {
        equal.set(what, names[id]);
        prompt[names[id]] = node;
      }
      return (names[id] = equal.get(what));
    };
    return targets.map(add);
  });
  return { prompt, targets: [...new Set(asked)] };
}

/** The id that a name has in the page, and the index of the prompt it comes from. */
export function origin(name) {
  const [id, index = 0] = name.split(MARK);
  return { id, index: Number(index) };
}

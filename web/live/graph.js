// What the graph in the page asks for: its nodes at any depth, whether anything in it changed, its seeds.

/** Every node of `graph` and of the subgraphs in it, with the id it has in a prompt ("7", in a subgraph "5:7"). */
export function* nodesOf(graph, prefix = "") {
  for (const node of graph.nodes ?? graph._nodes) {
    const id = `${prefix}${node.id}`;
    yield [id, node];
    if (node.subgraph) yield* nodesOf(node.subgraph, `${id}:`);
  }
}

/** A text that differs where a value, a link or a mode anywhere in `graph` differs; places and sizes do not count.
 *
 * It stands in for the whole input many times a second: building that serialises everything, and asks widgets that
 * draw lots.
 */
export function fingerprint(graph) {
  const parts = [];
  for (const [id, node] of nodesOf(graph)) {
    parts.push(id, node.type, node.mode);
    for (const widget of node.widgets ?? []) if (counts(widget)) parts.push(widget.name, widget.value);
    for (const input of node.inputs ?? []) parts.push(input.link);
    for (const output of node.outputs ?? []) parts.push(output.links?.length);
  }
  return JSON.stringify(parts);
}

const counts = (widget) => widget.options?.serialize !== false && !(widget.value instanceof Node);

/** Those nodes of a prompt in API format that the nodes `targets` need, themselves with them. */
export function upstream(prompt, targets) {
  const needed = new Set();
  const waiting = [...targets];
  while (waiting.length) {
    const id = waiting.pop();
    if (needed.has(id) || !prompt[id]) continue;
    needed.add(id);
    for (const value of Object.values(prompt[id].inputs)) if (isLink(value)) waiting.push(value[0]);
  }
  return Object.fromEntries(Object.entries(prompt).filter(([id]) => needed.has(id)));
}

/** Whether an input's value in API format is a link. */
export const isLink = (value) => Array.isArray(value) && value.length === 2 && typeof value[0] === "string";

/** What two prompts that draw the same picture have in common: all but titles. */
export const inputOf = (prompt) =>
  JSON.stringify(Object.entries(prompt).map(([id, node]) => [id, node.class_type, node.inputs]));

/** The seeds that lead to the picture, as widgets: those not held by "fixed"; all, where all are held.
 *
 * A seed is a number with the page's own control beside it, set in the node itself.
 */
export function seedsOf(graph, prompt) {
  const seeds = [];
  for (const [id, node] of nodesOf(graph)) {
    for (const widget of node.widgets ?? []) {
      const control = widget.linkedWidgets?.find((other) => other.name === "control_after_generate");
      const linked = node.inputs?.some((input) => input.widget?.name === widget.name && input.link != null);
      if (control && !linked && (prompt[id] || node.subgraph)) seeds.push([widget, control.value]);
    }
  }
  const free = seeds.filter(([, control]) => control !== "fixed");
  return (free.length ? free : seeds).map(([widget]) => widget);
}

/** A random value that a seed's widget takes. */
export function drawn({ options: { min = 0, max = Number.MAX_SAFE_INTEGER } }) {
  const [low, high] = [Math.max(min, 0), Math.min(max, Number.MAX_SAFE_INTEGER)];
  return low + Math.floor(Math.random() * (high - low));
}

/** Write values, [widget, value] each, into the page. */
export function setSeeds(values) {
  for (const [widget, value] of values) {
    widget.value = value;
    widget.callback?.(value);
  }
}

// The live mode of InstaFlow Live Preview: type, and the picture follows. Works on any graph that ends in the node.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { nodesOf } from "./live/graph.js";
import { Panel } from "./live/panel.js";
import { Player } from "./live/player.js";
import { save } from "./live/saving.js";
import { learn, t } from "./live/words.js";

const KIND = "InstaFlowLivePreview";
const HEIGHT = 200; // px, the least that shows a picture

const panels = new WeakMap(); // live node -> its Panel
const hidden = new Map(); // node class -> what the host hands its nodes beside their inputs
let kept = { playing: false, nodes: [] }; // what is live while Undo or Redo puts all nodes of the graph in anew
const player = new Player({ isHanded: (kind, input) => hidden.get(kind)?.includes(input), seen: showFrame });

function addPanel(node) {
  const panel = new Panel();
  panels.set(node, panel);
  const show = () => panel.show({ on: player.isOn(node), playing: player.playing });
  panel.start = () => {
    panel.say("");
    player.start(node, (error) => {
      show();
      panel.say(t("Live stopped: {0}", error.message), true);
    });
    show();
  };
  panel.live.onclick = () => {
    if (!player.isOn(node)) return panel.start();
    player.stop(node);
    show();
  };
  panel.play.onclick = () => {
    if (player.playing) player.pause();
    else player.play();
    show();
  };
  panel.save.onclick = async () => {
    try {
      const files = await save(panel.shown);
      panel.say(t("Saved as {0}", files.join(", ")));
    } catch (error) {
      panel.say(error.message, true);
    }
  };
  const widget = node.addDOMWidget("live", "instaflow_live", panel.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => HEIGHT,
  });
  widget.serialize = false; // nor in the workflow: a graph that is opened does not begin by itself
  node.setSize([Math.max(node.size[0], 340), Math.max(node.size[1], 420)]);
  const removed = node.onRemoved;
  node.onRemoved = function (...args) {
    player.stop(node);
    panel.close();
    return removed?.apply(this, args);
  };
}

/** The live nodes that are on, [id in a prompt, node] of each; none where another graph is opened. */
function toKeep() {
  const tracker = app.extensionManager.workflow.activeWorkflow?.changeTracker;
  if (!tracker?._restoringState) return [];
  return [...nodesOf(app.rootGraph ?? app.graph)].filter(([, node]) => player.isOn(node));
}

/** milliseconds: what the picture took, where that is known. */
function showFrame(announced, picture, milliseconds) {
  for (const [id, node] of nodesOf(app.rootGraph ?? app.graph)) {
    const panel = id === announced.node && panels.get(node);
    if (!panel) continue;
    panel.shown = announced;
    panel.frame(picture, announced.index, announced.count, milliseconds);
  }
}

app.registerExtension({
  name: "instaflow.Live",

  init: learn,

  beforeRegisterNodeDef(_, definition) {
    if (definition.name === KIND) return; // as an output node it is handed the workflow, and does not read it
    hidden.set(definition.name, Object.values(definition.input?.hidden ?? {}).flat());
  },

  nodeCreated(node) {
    if (node.comfyClass === KIND) addPanel(node);
  },

  beforeConfigureGraph() {
    kept = { playing: player.playing, nodes: toKeep() };
  },

  afterConfigureGraph() {
    if (!kept.nodes.length) return;
    const now = new Map(nodesOf(app.rootGraph ?? app.graph));
    for (const [, node] of kept.nodes) player.stop(node); // those in a subgraph are not told that they went
    if (kept.playing) player.play();
    for (const [id] of kept.nodes) panels.get(now.get(id))?.start();
  },

  setup() {
    // Frames of a plain Run come with the page's own messages: first it is announced, the next picture is it.
    let announced = null;
    api.addEventListener("instaflow.live", ({ detail }) => (announced = detail));
    api.addEventListener("b_preview", ({ detail }) => {
      if (announced) showFrame(announced, detail);
      announced = null;
    });
    addEventListener("pagehide", () => player.close());
  },
});

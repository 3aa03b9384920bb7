// When to ask for a picture: one prompt runs, only the newest waits.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { Connection } from "./connection.js";
import { Flights } from "./flights.js";
import { drawn, fingerprint, inputOf, nodesOf, seedsOf, setSeeds, upstream } from "./graph.js";
import { newId, queue } from "./server.js";
import { origin, together } from "./together.js";
import { t } from "./words.js";

const LOOK_EVERY = 25; // ms between two looks at the graph
const AHEAD = 1000; // ms of playing that one prompt draws, where pictures come that fast,
const MOST = 12; // pictures at most: the server keeps what led to each until the next prompt
const ITSELF = ["PROMPT", "DYNPROMPT", "UNIQUE_ID", "EXTRA_PNGINFO"]; // hidden inputs

const root = () => app.rootGraph ?? app.graph;

/** Whether a flight asks for the graph as it stands, and not for drawn seeds. */
const standing = (flight) => !flight.pictures[0].seeds.length;

/** Follows the graph for the live nodes that are switched on. */
export class Player {
  #on = new Map(); // live node -> what to call with an error that stops it
  #flights = new Flights();
  #seen = ""; // fingerprint at the last look
  #stale = false; // the graph may ask for something that was not asked yet
  #prompt = null; // the last that was read from the graph, in API format
  #asked = ""; // input of the last that was asked for as the graph stood or, while playing, of the picture shown
  #shown = null; // while seeds are drawn: those that the page is to have after, [widget, value] each
  #many = 1; // pictures the last prompt asked for
  #each = Infinity; // ms a picture took lately
  #busy = false;
  #timer = 0;
  #connection = null; // open while a node is on
  playing = false;

  /** isHanded(class, input): whether the host hands its nodes that hidden input;
   * seen(announced, picture, milliseconds): what to do with a frame, `announced` with the node's id in the page and the
   * `prompt` and `workflow` it was made by. */
  constructor({ isHanded, seen }) {
    Object.assign(this, { isHanded, seen });
  }

  isOn = (node) => this.#on.has(node);

  start(node, onError) {
    this.#on.set(node, onError);
    this.#asked = "";
    this.#stale = true;
    if (!this.#timer) this.#look();
  }

  /** Stop following for `node`; with the last one, what was asked and is not drawn is called off. */
  stop(node, options = {}) {
    if (!this.#on.delete(node)) return;
    this.#asked = "";
    if (!this.#on.size) this.#callOff(options);
  }

  /** Stop following for every node, because of `error`. */
  fail(error) {
    const told = [...this.#on.values()];
    this.#on.clear();
    this.#callOff();
    for (const tell of told) tell(error);
  }

  /** The page is closing. */
  close() {
    this.#on.clear();
    this.#callOff({ keepalive: true });
    this.#flights.forget({ keepalive: true });
  }

  /** Draw one new seed after the other. */
  play() {
    this.playing = true;
  }

  /** Keep the picture that is shown. */
  async pause() {
    this.playing = false;
    try {
      await this.#flights.drop((flight) => !standing(flight));
    } catch (error) {
      this.fail(error);
    }
  }

  #heard(type, data) {
    if (type === "execution_start") {
      this.#flights.began(data.prompt_id);
      this.#step();
    }
    if (!["execution_success", "execution_interrupted", "execution_error"].includes(type)) return;
    const flight = this.#flights.ended(data.prompt_id, type === "execution_success");
    if (!flight) return;
    if (type === "execution_success") {
      this.#each = (performance.now() - flight.begun) / flight.pictures.length;
      this.#step();
    } else if (type === "execution_interrupted") {
      this.fail(new Error(t("interrupted")));
    } else {
      this.fail(new Error(`${data.node_type}: ${data.exception_message.trim()}`));
      const detail = { ...data, node_id: origin(data.node_id).id };
      api.dispatchEvent(new CustomEvent(type, { detail })); // the page marks the node as it always does
    }
  }

  #frame(announced, picture) {
    const flight = this.#flights.get(announced.prompt_id);
    if (!flight) return; // called off
    const { id, index } = origin(announced.node);
    const { prompt, workflow, seeds } = flight.pictures[index];
    if (seeds.length) this.#follow(seeds, prompt);
    const now = performance.now();
    this.seen({ ...announced, node: id, prompt, workflow }, picture, now - flight.from);
    if (announced.index === announced.count - 1) flight.from = now;
  }

  /** Let the page's seeds be those of the picture that is shown, unless the graph was changed since. */
  #follow(seeds, prompt) {
    if (this.#shown) this.#shown = seeds;
    if (this.#shown || this.#changed() || this.#stale || this.#flights.all.some(standing)) return;
    setSeeds(seeds);
    this.#seen = fingerprint(root());
    this.#asked = inputOf(prompt);
  }

  #look() {
    this.#timer = 0;
    if (!this.#on.size) return;
    const began = performance.now();
    this.#step();
    // Looking at a very large graph takes at most a tenth of the time.
    this.#timer = setTimeout(() => this.#look(), Math.max(LOOK_EVERY, 9 * (performance.now() - began)));
  }

  #changed() {
    const now = fingerprint(root());
    if (now === this.#seen) return false;
    [this.#seen, this.#stale] = [now, true];
    return true;
  }

  async #step() {
    if (this.#busy || !this.#on.size || document.hidden) return;
    this.#busy = true;
    try {
      this.#changed();
      if (!this.#connection) await this.#connect();
      if (this.#stale && this.playing) await this.#dropWaiting();
      if (this.#mayAsk()) await this.#ask();
    } catch (error) {
      this.fail(error);
    } finally {
      this.#busy = false;
    }
  }

  async #connect() {
    this.#connection = new Connection({
      heard: (type, data) => this.#heard(type, data),
      seen: (announced, picture) => this.#frame(announced, picture),
      lost: () => this.fail(new Error(t("the connection to the server was lost"))),
    });
    await this.#connection.open();
  }

  /** The change is newer than what waits at the server. */
  async #dropWaiting() {
    const waits = (flight) => !flight.begun;
    if (this.#flights.all.some((flight) => waits(flight) && standing(flight))) this.#asked = "";
    await this.#flights.drop(waits);
  }

  /** Whether there is something to ask for, and room: for one prompt; while playing, for one more to wait. */
  #mayAsk() {
    if (!this.#stale && !this.playing) return false;
    const flights = this.#flights.all;
    return this.playing ? flights.every((flight) => flight.begun) : !flights.length;
  }

  async #ask() {
    const asItStands = this.#stale;
    this.#stale = false;
    const pictures = asItStands ? [await this.#read()] : await this.#draw();
    const [{ prompt, workflow, targets }] = pictures;
    [this.#prompt, this.#many] = [prompt, pictures.length];
    if (!targets.length || !(asItStands || this.playing)) return;
    if (asItStands) {
      const input = inputOf(prompt);
      if (input === this.#asked) return;
      this.#asked = input;
    }
    const id = newId();
    this.#flights.add(id, pictures);
    await queue({
      id,
      client: this.#connection.id,
      ...together(pictures.map((picture) => picture.prompt), targets),
      workflow: this.#reads(prompt, ["EXTRA_PNGINFO"]) ? workflow : undefined,
    });
  }

  /** What the graph in the page asks for now. */
  async #read() {
    const { output, workflow } = await app.graphToPrompt();
    const on = [...nodesOf(root())].filter(([id, node]) => this.#on.has(node) && output[id]);
    const targets = on.map(([id]) => id);
    return { prompt: upstream(output, targets), targets, workflow, seeds: [] };
  }

  /** What the graph asks for with new seeds, for as many pictures as are asked together. */
  async #draw() {
    const seeds = seedsOf(root(), this.#prompt);
    if (!seeds.length) throw new Error(t("Play found no seed to draw: no node that leads here has one."));
    // Twice as many each time: who changes the graph meanwhile waits for the next picture, and not for a full prompt. A
    // node that looks at itself or at the whole prompt is to see what it sees in the page.
    const many = this.#reads(this.#prompt, ITSELF) ? 1 : Math.floor(Math.min(2 * this.#many, AHEAD / this.#each, MOST));
    const pictures = [];
    this.#shown = seeds.map((widget) => [widget, widget.value]);
    try {
      do {
        const values = seeds.map((widget) => [widget, drawn(widget)]);
        setSeeds(values);
        pictures.push({ ...(await this.#read()), seeds: values });
      } while (pictures.length < many);
    } finally {
      setSeeds(this.#shown);
      this.#shown = null;
      this.#seen = fingerprint(root());
    }
    return pictures;
  }

  /** Whether a node of `prompt` reads one of the host's hidden inputs `names`. */
  #reads(prompt, names) {
    return Object.values(prompt).some((node) => names.some((name) => this.isHanded(node.class_type, name)));
  }

  #callOff(options) {
    this.playing = false;
    this.#connection?.close();
    this.#connection = null;
    this.#flights.stop(options);
  }
}

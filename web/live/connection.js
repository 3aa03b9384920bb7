// A websocket of the live mode's own.
//
// Prompts queued under its id report here and not to the rest of the page, which redraws itself at every message: bars,
// tab, icon. That costs more than a picture of a one-step model. Two tabs have two ids, also where one is a duplicate.

import { api } from "../../../scripts/api.js";
import { newId } from "./server.js";
import { t } from "./words.js";

const PREVIEW_IMAGE = 1; // the host's binary message with a picture: two numbers of 32 bits, then the file

/** Calls `heard(type, data)` for every message in JSON, `seen(announced, picture)` for every frame, `lost()` where the
 * connection ends without `close`. */
export class Connection {
  #socket = null;
  #announced = null;
  id = newId();

  constructor({ heard, seen, lost }) {
    Object.assign(this, { heard, seen, lost });
  }

  /** Resolves when the server knows this connection. */
  open() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    this.#socket = new WebSocket(`${scheme}://${api.api_host}${api.api_base}/ws?clientId=${this.id}`);
    this.#socket.binaryType = "arraybuffer";
    return new Promise((resolve, reject) => {
      this.#socket.onclose = () => reject(new Error(t("the server cannot be reached")));
      this.#socket.onmessage = ({ data }) => {
        // Its first message is the status, sent when it has put us on its list.
        this.#socket.onclose = () => this.lost();
        this.#socket.onmessage = (message) => this.#read(message.data);
        this.#read(data);
        resolve();
      };
    });
  }

  close() {
    if (this.#socket) this.#socket.onclose = this.#socket.onmessage = null;
    this.#socket?.close();
  }

  #read(data) {
    if (data instanceof ArrayBuffer) {
      const kind = new DataView(data).getUint32(0);
      if (kind === PREVIEW_IMAGE && this.#announced) {
        this.seen(this.#announced, new Blob([data.slice(8)], { type: "image/jpeg" }));
        this.#announced = null;
      }
      return;
    }
    const message = JSON.parse(data);
    if (message.type === "instaflow.live") this.#announced = message.data;
    else this.heard(message.type, message.data);
  }
}

// The page hears of the server's queue at most twice a second while the live mode draws.
//
// Every prompt changes the queue three times, and the server tells all pages of it. At each message the page asks for
// queue and history and renews its bars and 47 style sheets: on two cores that took longer than the pictures.

import { api } from "../../../scripts/api.js";

const EVERY = 500; // ms

let quiet = null; // while it is quiet: what tells the page

/** Hold the messages about the queue back, if the page tells them as ComfyUI's does. */
export function begin() {
  if (quiet) return;
  const tell = api.dispatchCustomEvent;
  let waiting, timer;
  const pass = () => {
    if (waiting !== undefined) tell.call(api, "status", waiting);
    timer = waiting === undefined ? 0 : setTimeout(pass, EVERY);
    waiting = undefined;
  };
  const dispatch = (type, detail) => {
    // Without detail it says that the server is gone.
    if (quiet !== dispatch || type !== "status" || !detail) return tell.call(api, type, detail);
    waiting = detail;
    if (!timer) pass();
    return true;
  };
  dispatch.end = () => {
    clearTimeout(timer);
    if (waiting !== undefined) tell.call(api, "status", waiting);
    if (api.dispatchCustomEvent === dispatch) api.dispatchCustomEvent = tell;
  };
  quiet = api.dispatchCustomEvent = dispatch;
}

/** Tell the page what it has not heard, and all from now on. */
export function end() {
  quiet?.end();
  quiet = null;
}

/**
 * Workflows that are apps open as ordinary graphs on pages from before apps: those have an early view of the same name
 * that shows every widget of the graph instead of the chosen ones.
 */
import { app } from "../../scripts/app.js";

const FIRST = [1, 41, 13]; // the frontend that brought apps

function hasApps() {
    const version = window.__COMFYUI_FRONTEND_VERSION__.split(".").map(Number);
    const differs = FIRST.findIndex((part, i) => version[i] !== part);
    return differs < 0 || version[differs] > FIRST[differs];
}

app.registerExtension({
    name: "instaflow.Apps",
    beforeConfigureGraph(graph) {
        if (graph.extra?.linearData && !hasApps()) delete graph.extra.linearMode;
    },
});

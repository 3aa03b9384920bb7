/** The colour of the sockets that only this pack has, in both renderers, unless a palette of the user's names another. */
import { app } from "../../scripts/app.js";

const COLORS = { INSTAFLOW_TRIPLETS: "#2dd4bf" };

/** Palettes clear the types they do not name each time one is chosen: what is cleared reads as `color`. */
function keep(table, type, color) {
    let chosen = table[type];
    Object.defineProperty(table, type, {
        configurable: true,
        enumerable: true,
        get: () => chosen || color,
        set: (value) => {
            chosen = value;
        },
    });
}

app.registerExtension({
    name: "instaflow.SocketColors",
    setup() {
        for (const [type, color] of Object.entries(COLORS)) {
            keep(app.canvas.default_connection_color_byType, type, color); // classic sockets
            keep(app.canvas.constructor.link_type_colors, type, color); // links
            // Sockets of Nodes 2.0: what the property is where no palette sets it.
            CSS.registerProperty({ name: `--color-datatype-${type}`, syntax: "<color>", inherits: true, initialValue: color });
        }
    },
});

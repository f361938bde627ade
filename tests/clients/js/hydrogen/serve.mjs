// SPDX-License-Identifier: AGPL-3.0-or-later
// Hydrogen, made of its SDK, on localhost.

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import path from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const here = path.dirname(fileURLToPath(import.meta.url));
const packages = path.join(here, "..", "node_modules");
const folders = {
    assets: path.join(packages, "hydrogen-view-sdk", "asset-build", "assets"),
    olm: path.join(packages, "@matrix-org", "olm"),
};
const types = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    ".woff2": "font/woff2",
};

async function bundle() {
    const made = await build({
        entryPoints: [path.join(here, "app.js")],
        bundle: true,
        format: "esm",
        platform: "browser",
        external: ["fs", "path", "crypto"], // which the library for end-to-end encryption looks for under Node.js
        logLevel: "error",
        write: false,
    });
    return made.outputFiles[0].contents;
}

/** Serve it: the address, and what stops it. */
export async function serve() {
    const app = await bundle();
    const page = await readFile(path.join(here, "index.html"));
    const worker = await readFile(path.join(packages, "hydrogen-view-sdk", "lib-build", "sw.js"));
    const server = createServer(async (request, response) => {
        const [, first, second] = new URL(request.url, "http://localhost").pathname.split("/");
        let content;
        let name = second ?? first;
        if (first === "" || first === "index.html") {
            [content, name] = [page, "index.html"];
        } else if (first === "app.js") {
            content = app;
        } else if (first === "sw.js") {
            content = worker;
        } else if (first in folders && second) {
            content = await readFile(path.join(folders[first], path.basename(second))).catch(() => undefined);
        }
        response.writeHead(content ? 200 : 404, { "Content-Type": types[path.extname(name)] ?? "text/plain" });
        response.end(content);
    });
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    return { url: `http://127.0.0.1:${server.address().port}`, stop: () => server.close() };
}

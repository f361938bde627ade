// SPDX-License-Identifier: AGPL-3.0-or-later
// A user of Hydrogen, in a browser, and somebody else who answers; neither knows of CoAP.
//
//     node hydrogen.mjs HOMESERVER-URL USER OTHER PASSWORD CHROMIUM FOLDER
//
// Prints what happened as one JSON object, and leaves pictures in the folder.

import path from "node:path";

import { chromium } from "playwright-core";

import { serve } from "./hydrogen/serve.mjs";

const [url, user, other, password, executablePath, folder] = process.argv.slice(2);
const patience = 60_000;

async function ask(method, target, body, token) {
    const headers = { "Content-Type": "application/json", ...(token && { Authorization: `Bearer ${token}` }) };
    const answer = await fetch(`${url}/_matrix/client/v3${target}`, { method, headers, body: body && JSON.stringify(body) });
    const said = await answer.json();
    if (!answer.ok) throw new Error(`${method} ${target}: ${JSON.stringify(said)}`);
    return said;
}

async function logIn(name) {
    const identifier = { type: "m.id.user", user: name };
    return (await ask("POST", "/login", { type: "m.login.password", identifier, password })).access_token;
}

let transaction = 0;
const say = (room, text, token) =>
    ask("PUT", `/rooms/${encodeURIComponent(room)}/send/m.room.message/${++transaction}`, { msgtype: "m.text", body: text }, token);

/** Wait until somebody says something in a room, by long polling. */
async function hear(room, text, token) {
    let since = (await ask("GET", "/sync?timeout=0", undefined, token)).next_batch;
    const deadline = Date.now() + patience;
    while (Date.now() < deadline) {
        const sync = await ask("GET", `/sync?timeout=30000&since=${since}`, undefined, token);
        since = sync.next_batch;
        const events = sync.rooms?.join?.[room]?.timeline?.events ?? [];
        const found = events.find((event) => event.content.body === text);
        if (found) return found.sender;
    }
    throw new Error(`waited in vain for ${text}`);
}

async function makeRoom() {
    const [bob, alice] = [await logIn(other), await logIn(user)];
    const { room_id: room } = await ask("POST", "/createRoom", { name: "Low bandwidth", preset: "public_chat" }, bob);
    await ask("POST", `/join/${encodeURIComponent(room)}`, {}, alice);
    await say(room, "Anybody on the slow side?", bob);
    return { room, bob };
}

async function converse(page, site) {
    const { room, bob } = await makeRoom();
    await page.goto(site);
    await page.fill("#homeserver", url);
    await page.press("#homeserver", "Tab");
    await page.fill("#username", user);
    await page.fill("#password", password);
    await page.screenshot({ path: path.join(folder, "hydrogen-login.png") });
    await page.click(".PasswordLoginView button[type=submit]");
    await page.click(".RoomList >> text=Low bandwidth");
    await page.waitForSelector(".Timeline >> text=Anybody on the slow side?");
    const heard = hear(room, "Here, in a browser, over CoAP", bob);
    await page.fill(".MessageComposer_input textarea", "Here, in a browser, over CoAP");
    await page.press(".MessageComposer_input textarea", "Enter");
    const sender = await heard;
    await say(room, "I can hear you", bob);
    await page.waitForSelector(".Timeline >> text=I can hear you");
    await page.waitForTimeout(300);
    await page.screenshot({ path: path.join(folder, "hydrogen.png") });
    return { sender };
}

async function statusPage(page) {
    await page.goto(`${url}/_lb/status`);
    await page.waitForFunction(() => document.querySelector("#wire").getAttribute("d"));
    await page.screenshot({ path: path.join(folder, "status.png") });
    return {
        saving: await page.textContent("#saving"),
        plotted: (await page.getAttribute("#http", "d")).startsWith("M"),
    };
}

const site = await serve();
const browser = await chromium.launch({
    executablePath,
    headless: true,
    args: [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ],
});
try {
    const page = await browser.newPage({ viewport: { width: 1100, height: 640 } });
    page.setDefaultTimeout(patience);
    const elsewhere = new Set();
    const faults = [];
    page.on("pageerror", (error) => faults.push(String(error)));
    await page.route("**/*", (route) => {
        const { origin } = new URL(route.request().url());
        if (origin === site.url || origin === url || origin === "null") return route.continue();
        elsewhere.add(origin);
        return route.abort();
    });
    const said = await converse(page, site.url).catch(async (error) => {
        await page.screenshot({ path: path.join(folder, "hydrogen-failed.png") });
        throw error;
    });
    const status = await statusPage(page);
    console.log(JSON.stringify({ ...said, ...status, elsewhere: [...elsewhere], faults }));
} finally {
    await browser.close();
    site.stop();
}
process.exit(0);

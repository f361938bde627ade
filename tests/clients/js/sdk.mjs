// SPDX-License-Identifier: AGPL-3.0-or-later
// Two users of matrix-js-sdk, as an application has it; knows nothing of CoAP.
//
//     node sdk.mjs HOMESERVER-URL USER OTHER PASSWORD
//
// Prints what happened as one JSON object.

import { ClientEvent, RoomEvent, createClient } from "matrix-js-sdk";
import { SlidingSync, SlidingSyncEvent, SlidingSyncState } from "matrix-js-sdk/lib/sliding-sync.js";

const [url, user, other, password] = process.argv.slice(2);
const quiet = { trace() {}, debug() {}, info() {}, warn() {}, error: console.error, getChild: () => quiet };
const patience = 60_000;

function within(promise, what) {
    let timer;
    const late = new Promise((_, reject) => {
        timer = setTimeout(() => reject(new Error(`waited in vain for ${what}`)), patience);
    });
    return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

async function logIn(name) {
    const answer = await createClient({ baseUrl: url, logger: quiet }).loginRequest({
        type: "m.login.password",
        identifier: { type: "m.id.user", user: name },
        password,
    });
    return createClient({
        baseUrl: url,
        logger: quiet,
        userId: answer.user_id,
        accessToken: answer.access_token,
        deviceId: answer.device_id,
    });
}

function prepared(client) {
    return within(
        new Promise((resolve) => {
            client.on(ClientEvent.Sync, (state) => state === "PREPARED" && resolve());
        }),
        "the initial sync",
    );
}

function message(client, body) {
    const seen = new Promise((resolve) => {
        client.on(RoomEvent.Timeline, (event) => {
            if (event.getType() === "m.room.message" && event.getContent().body === body) {
                resolve({ sender: event.getSender(), room: event.getRoomId() });
            }
        });
    });
    return within(seen, body);
}

async function ordinarySync(alice, bob, room) {
    const ready = Promise.all([prepared(alice), prepared(bob)]);
    await alice.startClient({ initialSyncLimit: 10 });
    await bob.startClient({ initialSyncLimit: 10 });
    await ready;
    const rounds = [];
    for (const text of ["one", "two", "three"]) {
        const heard = message(bob, text);
        await alice.sendTextMessage(room, text);
        const answered = message(alice, `re: ${text}`);
        rounds.push((await heard).sender);
        await bob.sendTextMessage(room, `re: ${text}`);
        rounds.push((await answered).sender);
    }
    const members = alice.getRoom(room).getJoinedMembers().length;
    alice.stopClient();
    bob.stopClient();
    return { rounds, members };
}

async function slidingSync(alice, bob, room) {
    const list = { ranges: [[0, 10]], timeline_limit: 5, required_state: [["m.room.name", ""]] };
    const sliding = new SlidingSync(url, new Map([["all", list]]), { timeline_limit: 5, required_state: [] }, bob, 5000);
    const rooms = new Map();
    sliding.on(SlidingSyncEvent.RoomData, (id, data) => {
        rooms.set(id, [...(rooms.get(id) ?? []), ...data.timeline.map((event) => event.content.body)]);
    });
    const complete = () =>
        within(
            new Promise((resolve) => {
                sliding.on(SlidingSyncEvent.Lifecycle, (state, answer, error) => {
                    if (state === SlidingSyncState.Complete && !error) resolve();
                });
            }),
            "a sliding sync",
        );
    const first = complete();
    const running = sliding.start();
    await first;
    const before = rooms.get(room) ?? [];
    await alice.sendTextMessage(room, "four");
    const deadline = Date.now() + patience;
    while (!rooms.get(room)?.includes("four") && Date.now() < deadline) {
        await new Promise((resolve) => setTimeout(resolve, 20));
    }
    sliding.stop();
    await running;
    return { before: before.includes("re: three"), heard: rooms.get(room).includes("four") };
}

const alice = await logIn(user);
const bob = await logIn(other);
const { room_id: room } = await alice.createRoom({ name: "Talk", invite: [bob.getUserId()] });
await bob.joinRoom(room);
const result = {
    versions: (await alice.getVersions()).versions.length > 0,
    ordinary: await ordinarySync(alice, bob, room),
    sliding: await slidingSync(alice, bob, room),
    profile: await alice.setDisplayName("Alice Ä").then(() => bob.getProfileInfo(alice.getUserId())),
    history: (await bob.createMessagesRequest(room, null, 100, "b")).chunk.filter((e) => e.type === "m.room.message").length,
};
await alice.logout(true);
result.loggedOut = await alice.whoami().then(
    () => "still there",
    (error) => error.errcode,
);
console.log(JSON.stringify(result));
process.exit(0);

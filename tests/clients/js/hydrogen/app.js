// SPDX-License-Identifier: AGPL-3.0-or-later
// Hydrogen as its SDK has it: the whole application, as its own main.js starts it.

import { FeatureSet, Platform, RootViewModel, createNavigation, createRouter } from "hydrogen-view-sdk";

const assetPaths = {
    downloadSandbox: "/assets/download-sandbox.html",
    worker: "/assets/main.js",
    olm: { wasm: "/olm/olm.wasm", legacyBundle: "/olm/olm_legacy.js", wasmBundle: "/olm/olm.js" },
    serviceWorker: "/sw.js",
};

const container = document.querySelector("#app");
const config = { defaultHomeServer: "" };
const platform = new Platform({ container, assetPaths, config, options: { development: false } });
await platform.init();
const navigation = createNavigation();
platform.setNavigation(navigation);
const urlRouter = createRouter({ navigation, history: platform.history });
urlRouter.attach();
const features = await FeatureSet.load(platform.settingsStorage);
const root = new RootViewModel({ platform, urlRouter, navigation, features });
await root.load();
platform.createAndMountRootView(root);

// The functions of the real hosts that extensions call, and nothing else.
"use strict";

const uiUpdateCallbacks = [];
const uiAfterUpdateCallbacks = [];
const uiLoadedCallbacks = [];
let uiLoaded = false;
let afterUpdateTimer = null;

function gradioApp() {
    return document;
}

function onUiUpdate(callback) {
    uiUpdateCallbacks.push(callback);
}

function onAfterUiUpdate(callback) {
    uiAfterUpdateCallbacks.push(callback);
}

function onUiLoaded(callback) {
    uiLoadedCallbacks.push(callback);
}

function onOptionsChanged(callback) {
    onUiLoaded(callback);
}

function callEach(callbacks, argument) {
    for (const callback of callbacks) {
        try {
            callback(argument);
        } catch (error) {
            console.error("error running callback", callback, error);
        }
    }
}

function startWatching() {
    document.body.classList.add("dark");
    const observer = new MutationObserver((mutations) => {
        if (!uiLoaded && document.querySelector("#txt2img_prompt")) {
            uiLoaded = true;
            callEach(uiLoadedCallbacks);
        }
        callEach(uiUpdateCallbacks, mutations);
        clearTimeout(afterUpdateTimer);
        afterUpdateTimer = setTimeout(() => callEach(uiAfterUpdateCallbacks), 200);
    });
    observer.observe(document.body, { childList: true, subtree: true });
}

// Gradio adds the head's elements when the page may be complete already.
if (document.readyState === "loading") {
    document.addEventListener("DOMContentLoaded", startWatching);
} else {
    startWatching();
}

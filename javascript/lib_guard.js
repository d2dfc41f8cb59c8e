// Renews the status after each generation, and repeats its summary in the accordion's header, which is closed at first.
// It watches the page by itself: WebUIs differ in which functions they lend to extensions, and when.

(function () {
    "use strict";

    const TABS = ["txt2img", "img2img"];
    const PAUSE_MS = 250;
    const seen = {};
    let waiting = false;

    // What every generation writes: the log with its time or error, the infotext, the pictures' addresses.
    function written(tab) {
        const texts = [`html_log_${tab}`, `html_info_${tab}`].map(function (id) {
            const element = document.getElementById(id);
            return element ? element.textContent : "";
        });
        const pictures = document.querySelectorAll(`#${tab}_gallery img`);
        return texts.concat(Array.from(pictures, (picture) => picture.src)).join("\n");
    }

    function renewStatus(tab) {
        const now = written(tab);
        const button = document.querySelector(`.lib-guard-${tab} .lib-guard-renew`);
        if (button && seen[tab] !== undefined && seen[tab] !== now) {
            button.click();
        }
        seen[tab] = now;
    }

    function showSummary(tab) {
        const status = document.querySelector(`.lib-guard-${tab} .lib-guard-status`);
        const label = document.querySelector(`.lib-guard-${tab} .label-wrap > span:first-child`);
        if (!status || !label) {
            return;
        }
        let badge = label.querySelector(".lib-guard-badge");
        if (!badge) {
            badge = document.createElement("span");
            badge.className = "lib-guard-badge";
            label.appendChild(badge);
        }
        const summary = status.dataset.summary || "";
        if (badge.textContent !== summary) {
            badge.textContent = summary;
        }
    }

    function look() {
        waiting = false;
        TABS.forEach(renewStatus);
        TABS.forEach(showSummary);
    }

    function watch() {
        new MutationObserver(function () {
            if (!waiting) {
                waiting = true;
                setTimeout(look, PAUSE_MS);
            }
        }).observe(document.body, { childList: true, subtree: true, characterData: true });
    }

    if (document.body) {
        watch();
    } else {
        document.addEventListener("DOMContentLoaded", watch);
    }
})();

// Renews the status after each generation, and repeats its summary in the accordion's header, which is closed at first.
// It watches the page by itself: WebUIs differ in which functions they lend to extensions, and when.

(function () {
    "use strict";

    const TABS = ["txt2img", "img2img"];
    const PAUSE_MS = 250;
    const RUNNING_MS = 1000;
    const seen = {};
    const asked = {};
    let waiting = false;

    // An element's text without the progress that Gradio lays over it, which changes all the time.
    function text(id) {
        const element = document.getElementById(id);
        const parts = element ? Array.from(element.children) : [];
        return parts.filter((part) => !part.classList.contains("wrap")).map((part) => part.textContent).join("");
    }

    // What every generation writes: the log with its time or error, the infotext, the pictures' addresses.
    function written(tab) {
        const pictures = document.querySelectorAll(`#${tab}_gallery img`);
        const addresses = Array.from(pictures, (picture) => picture.src);
        return [text(`html_log_${tab}`), text(`html_info_${tab}`), ...addresses].join("\n");
    }

    function renew(tab) {
        const button = document.querySelector(`.lib-guard-${tab} .lib-guard-renew`);
        if (button) {
            asked[tab] = Date.now();
            button.click();
        }
    }

    function renewStatus(tab) {
        const now = written(tab);
        if (seen[tab] !== undefined && seen[tab] !== now) {
            renew(tab);
        }
        seen[tab] = now;
    }

    // Gradio drops a click that comes while the one before is being answered, and it may be the last one of a
    // generation. So a status that says that one is running is renewed until it does not.
    function renewRunning() {
        TABS.forEach(function (tab) {
            const status = document.querySelector(`.lib-guard-${tab} .lib-guard-status`);
            if (status && status.dataset.outcome === "running" && Date.now() - (asked[tab] || 0) >= RUNNING_MS) {
                renew(tab);
            }
        });
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
        setInterval(renewRunning, RUNNING_MS);
    }

    if (document.body) {
        watch();
    } else {
        document.addEventListener("DOMContentLoaded", watch);
    }
})();

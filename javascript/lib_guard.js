// The accordion is closed at first, so its header repeats in two words what the status inside says.

(function () {
    function showSummaries() {
        gradioApp().querySelectorAll(".lib-guard").forEach(function (accordion) {
            const status = accordion.querySelector(".lib-guard-status");
            const label = accordion.querySelector(".label-wrap > span:first-child");
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
        });
    }

    onAfterUiUpdate(showSummaries);
})();

"""What the host is doing right now."""

from __future__ import annotations

import datetime

import torch


class State:
    """The job in progress. `interrupted` ends the job, `skipped` only the picture in work."""

    job = ""
    job_timestamp = "0"
    job_no = 0
    job_count = 0
    interrupted = False
    skipped = False
    sampling_step = 0
    sampling_steps = 0
    textinfo: str | None = None
    #: Latents of the last step, (batch, channels, height / 8, width / 8), for the live preview.
    current_latent: torch.Tensor | None = None

    def begin(self, job: str = "(unknown)") -> None:
        """Start a job."""
        self.job = job
        self.job_timestamp = datetime.datetime.now().strftime("%Y%m%d%H%M%S")
        self.job_no, self.job_count = 0, -1
        self.interrupted = self.skipped = False
        self.sampling_step = self.sampling_steps = 0
        self.current_latent = None

    def end(self) -> None:
        """End the job."""
        self.job, self.job_count = "", 0
        self.current_latent = None

    def interrupt(self) -> None:
        """Ask the job to end after the current step."""
        self.interrupted = True

    def skip(self) -> None:
        """Ask for the end of the picture in work after the current step."""
        self.skipped = True

    def dict(self) -> dict[str, object]:
        """The state as the progress route shows it."""
        names = ("skipped", "interrupted", "job", "job_count", "job_timestamp", "job_no")
        return {name: getattr(self, name) for name in (*names, "sampling_step", "sampling_steps")}

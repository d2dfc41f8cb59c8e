"""The embedded host: a small, plain WebUI to see and test LibGuard in.

It is a demonstration and a test bench, not a product. The pipelines are the real ones of diffusers, with tiny random
models of the real architectures; page and API are real Gradio and FastAPI; the extension is loaded the way a WebUI
loads it, with the callback order and the failure behaviour of AUTOMATIC1111 or of SD.Next.

    python -m demo                  the page on http://127.0.0.1:7860
    python -m demo --check          every reported fault, without LibGuard and with it

Nothing here is imported by the extension.
"""

import os

# Here, because torch, diffusers and gradio read these once. The first four keep the host off the network. The last
# makes matrix products independent of where in memory their operands lie: without it, the same float32 request gives
# pixels that differ by one after a LoRA was loaded and unloaded, although all weights are equal.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", DIFFUSERS_OFFLINE="1", GRADIO_ANALYTICS_ENABLED="False")
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")

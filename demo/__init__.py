"""The embedded host: a small, plain WebUI to see and test LibGuard in.

It is a demonstration and a test bench, not a product. The pipelines are the real ones of diffusers, with tiny random
models of the real architectures; page and API are real Gradio and FastAPI; the extension is loaded the way a WebUI
loads it, with the callback order and the failure behaviour of AUTOMATIC1111 or of SD.Next.

    python -m demo                  the page on http://127.0.0.1:7860
    python -m demo --check          every reported fault, without LibGuard and with it

Nothing here is imported by the extension.
"""

"""Textual inversions that an extension puts into AUTOMATIC1111 as their files hold them.

Part of the tests, never shipped. The host makes those of its own folder float32 (textual_inversion.py:293-306);
extensions that bring embeddings beside their own weights register what `get_tensor` gives. Each has the same values as
`floatstyle`, so that this one gives the picture that the others should.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from modules import script_callbacks, shared
from modules.sd_hijack import model_hijack
from modules.textual_inversion.textual_inversion import Embedding

DTYPES = {"bfloatstyle": torch.bfloat16, "halfstyle": torch.float16, "doublestyle": torch.float64}


def register(*_: Any) -> None:
    with safe_open(str(Path(shared.cmd_opts.embeddings_dir) / "tinystyle.safetensors"), "pt") as file:
        # What both bfloat16 and half can hold.
        vectors = file.get_tensor("emb_params").bfloat16().half()
    for name, dtype in {**DTYPES, "floatstyle": torch.float32}.items():
        model_hijack.embedding_db.register_embedding(Embedding(vectors.to(dtype), name), shared.sd_model)


script_callbacks.on_model_loaded(register)

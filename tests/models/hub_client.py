"""Loads one model after the other in a process of its own, as the endpoint and the cache are read when a library is
imported.

Reads a JSON list of {"name", "revision"} or {"tell"} on stdin, and writes for each {"logits", "origin"} or {"error",
"message"}.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request


def main() -> None:
    import torch

    from mechwork.errors import MechworkError
    from mechwork.models.identity import identify_model
    from mechwork.models.load import load_model

    torch.set_num_threads(1)
    for case in json.loads(sys.stdin.read()):
        if "tell" in case:  # a word to the server: see `hub_server`
            urllib.request.urlopen(f"{os.environ['HF_ENDPOINT']}/control/{case['tell']}", timeout=10).read()
            continue
        os.environ["HF_HUB_OFFLINE"] = "1" if case.get("offline") else "0"
        try:
            model = load_model(case["name"], revision=case.get("revision"))
            with torch.no_grad():
                logits = model(torch.tensor([[1, 2, 3]]))[0, -1, :5].tolist()
            answer = {
                "logits": logits,
                "origin": identify_model(model)["origin"],
                "tokenizer": model.tokenizer is not None,
            }
        except MechworkError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

"""A model trained from nothing, fused and naive: benchmarks/curve.py RESULTS.jsonl [MODEL] [STEPS] [BATCH]; on a GPU.

One H200: 300 steps of dinat_tiny at batch 128 take a minute and a half. `vicinal bench models-report` draws the curves.
"""

import json
import sys
from datetime import datetime, timezone

import torch

import vicinal.models  # noqa: F401 -- before timm
from vicinal.bench.models.curve import curve
from vicinal.bench.models.rows import Row
from vicinal.machine import device_name

if __name__ == "__main__":
    results, model, steps, batch, *_ = [*sys.argv[1:], *("dinat_tiny", "300", "128")[len(sys.argv) - 2 :]]
    device = torch.device("cuda")
    line = curve(Row(model, torch.bfloat16, int(batch), True), ("fused", "naive"), device, int(steps))
    about = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "device": device_name(device)}
    with open(results, "a") as file:
        file.write(json.dumps(line | about) + "\n")

"""What both sides agree on: values and decisions. No network, no database, no clock of its own."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime phones home otherwise, from its import on

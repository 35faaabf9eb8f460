"""A node that only answers, for ``benchmarks.local_api``: what it imports is what its memory is measured with."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

from fleet.task import Signature
from node.desk import Desk
from node.http_server import HttpServer
from node.local_api import LocalApi
from node.predictor import Predictor

SHAPE = (6, 100)
SIGNATURE = Signature("x", SHAPE, -8.0, 8.0, tuple("abcdefg"))


def serve(folder: Path) -> None:
    """Answer over both kinds of address until the input ends; a line of it asks for a line about memory."""

    predictor = Predictor(1, (folder / "artifact.onnx").read_bytes(), SIGNATURE)
    desk = Desk(folder / "node.db", SIGNATURE, SimpleNamespace(active=predictor, rival=None), partition_size=1000)
    api = LocalApi(desk, "task", version="0")
    servers = [HttpServer(where, api) for where in (str(folder / "api.sock"), "http://127.0.0.1:0")]
    for server in servers:
        server.start()
    print(json.dumps([server.address for server in servers]), flush=True)
    for _ in sys.stdin:
        status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        rss_kb = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
        print(json.dumps({"rss_mb": rss_kb / 1024, "unrecorded": desk.metrics.unrecorded}), flush=True)
    for server in servers:
        server.close()
    desk.close()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))

"""Times of `tok1d serve`: from the command to the first page, and from the slider to the picture. One line each.

python benchmarks/web.py [--moves 40]
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
import uuid

import httpx

API = "/gradio_api/"
MODEL = "emoji-smap"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moves", type=int, default=40, help="number of moves of the slider")
    moves = parser.parse_args().moves
    begun = time.perf_counter()
    command = [sys.executable, "-m", "tok1d", "serve", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = re.search(r"http://\S+", server.stdout.readline())
        assert address is not None, "the server did not start"
        client = httpx.Client(base_url=address[0], timeout=120)
        assert client.get("/").status_code == 200
        print(f"from the command to the page: {time.perf_counter() - begun:.2f} s, {cpu(server.pid):.2f} s of CPU time")
        events = {each["api_name"]: each for each in client.get("/config").json()["dependencies"]}
        session = uuid.uuid4().hex[:10]
        shown = first_picture(client, events, session)
        print(f"from the command to the first picture: {shown - begun:.2f} s, {cpu(server.pid):.2f} s of CPU time")
        times = []
        for move in range(moves):
            body = {"data": [1 + move % 16], "fn_index": events["tokens"]["id"], "session_hash": session}
            start = time.perf_counter()
            answer = client.post(f"{API}run/predict", json=body).json()["data"][0]
            times.append(time.perf_counter() - start)
            assert f"from {1 + move % 16} of 16" in answer
        middle, most = 1000 * statistics.median(times), 1000 * max(times)
        print(f"from the slider to the picture: median {middle:.0f} ms, longest {most:.0f} ms, of {moves}")
    finally:
        server.terminate()
        server.wait()


def first_picture(client: httpx.Client, events: dict, session: str) -> float:
    """Ask for the first example and its reconstructions, as the page does; the time at which they are there."""
    begin = {"data": [], "fn_index": events["begin_ReconstructTab"]["id"], "session_hash": session}
    picture, _, words, *_ = queued(client, begin, session)
    ids = events["reconstruct"]["inputs"]
    parts = {each["id"]: each["props"] for each in client.get("/config").json()["components"]}
    own = {"Picture": picture, "Model": MODEL, "Caption of the picture": words["value"]}
    data = [own.get(parts[each].get("label"), parts[each].get("value")) for each in ids]
    queued(client, {"data": data, "fn_index": events["reconstruct"]["id"], "session_hash": session}, session)
    return time.perf_counter()


def queued(client: httpx.Client, body: dict, session: str) -> list:
    """The last answer of an event in the queue."""
    assert client.post(f"{API}queue/join", json=body).status_code == 200
    found: list = []
    with client.stream("GET", f"{API}queue/data", params={"session_hash": session}) as lines:
        for line in lines.iter_lines():
            message = json.loads(line[5:]) if line.startswith("data:") else {"msg": ""}
            if message["msg"] == "process_completed":
                assert message["success"], message
                found = message["output"]["data"] or found
                break
    return found


def cpu(pid: int) -> float:
    """CPU seconds of a process so far (Linux)."""
    import os

    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()

"""`interp` in processes that are forked from one that has imported what it imports.

Importing takes longer than most commands of the docs. `serve(address)` waits for commands until its
input ends, and `python tests/forked.py ADDRESS ARGS` is `interp ARGS`: in this folder, with this
process's input and outputs, and with its exit status.
"""

import json
import os
import select
import socket
import sys
from importlib import import_module

IMPORTED = (
    "interp.cli.program",
    "interp.models.bridge.building",
    "interp.reports",
    "interp.runs.worker",
    "transformer_lens.model_bridge",
)


def ask(address: str, args: list[str]) -> int:
    """Have a command run, wait for the end of its process, and return its exit status."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        asked = {"args": args, "folder": os.getcwd()}  # noqa: PTH109 (pathlib is slow to import)
        socket.send_fds(connection, [json.dumps(asked).encode()], [0, 1, 2])
        status = connection.recv(1)
        connection.recv(1)  # nothing, when it has ended
    return status[0] if status else 1


def serve(address: str) -> None:
    """Run every command that is asked for in a process of its own."""
    for name in IMPORTED:
        import_module(name)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:
            connection, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                run(connection)
            connection.close()


def run(connection: socket.socket) -> None:
    """Run the command that is asked for, and leave."""
    asked, files, *_ = socket.recv_fds(connection, 65536, 3)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    told = json.loads(asked)
    os.chdir(told["folder"])
    sys.argv = ["interp", *told["args"]]
    status = 1
    try:
        import_module("interp.cli.program").main()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        raise
    finally:
        connection.send(bytes([status]))


if __name__ == "__main__":
    sys.exit(ask(sys.argv[1], sys.argv[2:]))

"""QEMU's monitor: commands and their answers.

Source: https://www.qemu.org/docs/master/interop/qmp-spec.html"""

import json
import socket

from soaklib.site import PATIENCE, Wrong, until


class Qmp:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("r")
        self.receive()
        self.execute("qmp_capabilities")

    def receive(self):
        line = self.lines.readline()
        if not line:
            raise Wrong("QEMU has closed its monitor")
        return json.loads(line)

    def execute(self, command, **arguments):
        """What the command returns; events are passed over."""
        message = {"execute": command, "arguments": arguments}
        self.socket.sendall(json.dumps(message).encode() + b"\n")
        while True:
            answer = self.receive()
            if "error" in answer:
                raise Wrong(f"QEMU refuses '{command}': {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def until(self, command, done):
        """Asks until the answer is what is waited for, and returns that."""
        found = {}

        def look():
            found["answer"] = self.execute(command)
            return done(found["answer"])

        try:
            until("", look)
        except Wrong:
            raise Wrong(f"'{command}' still says {found['answer']}") from None
        return found["answer"]

    def close(self):
        self.lines.close()
        self.socket.close()

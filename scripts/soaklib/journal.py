"""The log of a soak: a line for each event, and a table at the end."""

import statistics
import sys
import time


class Journal:
    def __init__(self, path):
        self.began = time.monotonic()
        self.file = path.open("w")
        # By kind of event: how often, and the pauses of it by who saw them.
        self.counts = {}
        self.pauses = {}
        self.wrong = []

    def line(self, text):
        line = f"{time.monotonic() - self.began:8.2f}  {text}"
        print(line, file=self.file, flush=True)
        print(line, file=sys.stderr, flush=True)

    def event(self, number, kind, what, seen, took):
        self.counts.setdefault(kind, [0, 0])[0] += 1
        self.line(f"{number:4}  {kind:18} {what:34} {seen} ({took:.2f} s)")

    def pause(self, kind, who, milliseconds):
        """How long somebody had no answer because of an event of that kind."""
        self.pauses.setdefault((kind, who), []).append(milliseconds)

    def error(self, kind, text):
        self.counts.setdefault(kind, [0, 0])[1] += 1
        self.wrong.append(text)
        self.line(f"WRONG  {kind}: {text}")

    def table(self):
        lines = [f"{'event':20} {'times':>6} {'wrong':>6}   pauses seen by: median, worst (number)"]
        for kind in sorted(self.counts):
            times, wrong = self.counts[kind]
            seen = [
                f"{who} {statistics.median(of):.0f} ms, {max(of):.0f} ms ({len(of)})"
                for (about, who), of in sorted(self.pauses.items())
                if about == kind
            ]
            lines.append(f"{kind:20} {times:6} {wrong:6}   {'; '.join(seen)}".rstrip())
        return "\n".join(lines)

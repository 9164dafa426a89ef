"""A program's log: one row an entry; lines without a time go on with the entry before."""

import re
from datetime import datetime

LINE = re.compile(r"(?P<time>\d{4}-\d\d-\d\dT[\d:]{8},\d{3}) (?P<indent> *)(?P<text>.*)")
SIZE = re.compile(r"\((?P<number>[\d.]+) (?P<unit>bytes|kB|MB)\)")
UNITS = {"bytes": 1, "kB": 1000, "MB": 1_000_000}


class Handler:
    def execute(self, path):
        rows = []
        for line in open(path, encoding="utf-8"):
            match = LINE.fullmatch(line.rstrip("\n"))
            if match is None:
                rows[-1]["text"] += "\n" + line
                continue
            size = SIZE.search(match["text"])
            rows.append({
                "time": datetime.strptime(match["time"], "%Y-%m-%dT%H:%M:%S,%f"),
                "indent": len(match["indent"]),
                "text": match["text"],
                "size": size and float(size["number"]) * UNITS[size["unit"]],
            })
        yield rows

"""Photos: what they are, their EXIF tags, a thumbnail's pixels, and their bytes."""

from datetime import datetime
from pathlib import Path

import pyarrow as pa
from PIL import ExifTags, Image

SCHEMA = pa.schema([
    ("name", pa.string()),
    ("format", pa.dictionary(pa.int8(), pa.string())),
    ("mode", pa.string()),
    ("size", pa.struct([("width", pa.uint16()), ("height", pa.uint16())])),
    ("taken", pa.timestamp("s")),
    ("exif", pa.map_(pa.string(), pa.string())),
    ("pixels", pa.list_(pa.uint8(), 8 * 8 * 3)),
    ("content", pa.large_binary()),
])


class Handler:
    def execute(self, path):
        with Image.open(path) as image:
            tags = {ExifTags.TAGS.get(tag, str(tag)): value for tag, value in image.getexif().items()}
            taken = tags.get("DateTime")
            row = {
                "name": Path(path).name,
                "format": image.format,
                "mode": image.mode,
                "size": {"width": image.width, "height": image.height},
                "taken": datetime.strptime(taken, "%Y:%m:%d %H:%M:%S") if taken else None,
                "exif": [(name, repr(value)) for name, value in sorted(tags.items())],
                "pixels": list(image.convert("RGB").resize((8, 8)).tobytes()),
                "content": Path(path).read_bytes(),
            }
        yield pa.Table.from_pylist([row], schema=SCHEMA)

"""RSS and Atom feeds: one row an item."""

import email.utils
from datetime import datetime, timezone

from lxml import etree


def child(item, *names):
    for node in item:
        if isinstance(node.tag, str) and etree.QName(node).localname in names:
            yield node


def text(item, *names):
    return next((node.text for node in child(item, *names)), None)


def when(value):
    for read in (email.utils.parsedate_to_datetime, datetime.fromisoformat):
        try:
            date = read(value)
        except (TypeError, ValueError):
            continue
        return date if date.tzinfo else date.replace(tzinfo=timezone.utc)
    return None


class Handler:
    def execute(self, path):
        tree = etree.parse(path, etree.XMLParser(resolve_entities=False, no_network=True))
        rows = []
        for item in tree.iter("{*}item", "{*}entry"):
            rows.append({
                "title": text(item, "title"),
                "link": text(item, "link"),
                "published": when(text(item, "pubDate", "date", "modified", "updated")),
                "body": text(item, "description", "content", "summary"),
                "categories": [node.text for node in child(item, "category", "subject")],
                "attributes": dict(item.attrib) or None,
                "line": item.sourceline,
            })
        return rows
